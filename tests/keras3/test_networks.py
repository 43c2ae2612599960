"""Whole networks, trained a little: trained = runtime on every integer, the inner ones too."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import keras
import numpy as np
import pytest

from benchmarks.keras3 import resnet20
from tests.exhaustive import only
from tests.keras3.deployed import assert_deployed
from tests.keras3.networks import mobilenet_v2
from tfdq.keras3 import QuantizedModel, calibrate, quantize_model
from tflite_export import IntegerTwin, convert

pytestmark = pytest.mark.backends
NETWORKS = {"resnet20": resnet20, "mobilenet_v2": mobilenet_v2}
TENSORFLOW = keras.backend.backend() == "tensorflow"
# On the other backends MobileNetV2 takes minutes, of compilation on JAX.
RUN_ALWAYS = [*NETWORKS] if TENSORFLOW else ["resnet20"]
TRAINED = [(policy, name) for policy in ("float32", "mixed_bfloat16") for name in NETWORKS]
TRAINED_ALWAYS = [("float32", "mobilenet_v2")] if TENSORFLOW else [("float32", "resnet20")]
TRAINED_ALWAYS.append(("mixed_bfloat16", "resnet20"))


def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 32)
    images = rng.random((32, 32, 32, 3)).astype(np.float32) * 0.5
    images += (labels[:, None, None, None] / 20).astype(np.float32)
    return images, labels


@pytest.fixture(scope="module", params=only([*NETWORKS], *RUN_ALWAYS))
def network(request: pytest.FixtureRequest) -> Callable[[], keras.Model]:
    return NETWORKS[request.param]


@pytest.fixture(scope="module", params=only(TRAINED, *TRAINED_ALWAYS), ids="-".join)
def trained(request: pytest.FixtureRequest) -> Iterator[QuantizedModel]:
    """Return a network trained for a few steps under a policy, at 4 bits."""
    policy, name = request.param
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed(0)
    model = quantize_model(NETWORKS[name](), weight_bits=4, activation_bits=4)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, jit_compile=keras.backend.backend() == "jax")
    images, labels = data()
    history = model.fit(images, labels, batch_size=16, epochs=2, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    yield model
    keras.config.set_dtype_policy(before)


def test_the_trained_network_is_what_the_runtime_computes(trained: QuantizedModel) -> None:
    assert_deployed(trained, data()[0])
    predicted = trained.predict(data()[0], verbose=0)
    eager = keras.ops.convert_to_numpy(trained(data()[0], training=False))
    np.testing.assert_array_equal(predicted, eager)


@pytest.mark.parametrize("bits", [8, 2])
def test_other_bits(network: Callable[[], keras.Model], bits: int) -> None:
    keras.utils.set_random_seed(0)
    model = quantize_model(network(), weight_bits=bits, activation_bits=bits)
    # One pass sets the statistics: with those of a new BatchNormalization the logits are constant.
    model(data()[0], training=True)
    assert_deployed(calibrate(model, data()[0]), data()[0], compiled=False)


def test_the_export_proves_it(trained: QuantizedModel) -> None:
    images = data()[0][:8]
    exported = convert(trained, calibration=images)
    assert exported.parity.exact
    assert exported.parity.agreement == 1.0
    worst = exported.parity.worst_layer()
    assert worst is not None
    assert (worst.identical, worst.largest) == (1.0, 0)
    logits = np.asarray(IntegerTwin(exported.content)(images))
    np.testing.assert_array_equal(trained.predict(images, verbose=0), logits)
