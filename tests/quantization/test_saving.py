"""Save, load, clone: outputs bit for bit, penalties and quantizers exactly once."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_model_optimization as tfmot
import tf_keras

import tfdq
from tfdq.quantization import (
    DefensiveQuantizeConfig,
    FixedRangeQuantizer,
    KernelQuantizer,
    QuantizeWrapper,
)
from tfdq.quantization.layers import FusedKernel

L = tf_keras.layers
Images = tuple[np.ndarray, np.ndarray]
FORMATS = ["model.keras", "model.h5", "saved_model"]
# Keras' own advice to prefer .keras.
pytestmark = pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")


def check_same(loaded: tf_keras.Model, model: tf_keras.Model, images: np.ndarray) -> None:
    np.testing.assert_array_equal(
        loaded.predict(images, verbose=0), model.predict(images, verbose=0)
    )
    assert len(loaded.weights) == len(model.weights)
    for a, b in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(loaded.losses, model.losses)
    assert [layer.name for layer in loaded.layers] == [layer.name for layer in model.layers]
    for a, b in zip(loaded.layers[1:], model.layers[1:], strict=True):
        assert a.output_grid() == b.output_grid()
        if isinstance(a, QuantizeWrapper):
            assert a.quantize_config.get_config() == b.quantize_config.get_config()
        if isinstance(getattr(a, "layer", None), FusedKernel):
            assert a.layer.penalty.get_config() == b.layer.penalty.get_config()
            assert a.layer.fused_activation == b.layer.fused_activation


@pytest.mark.parametrize("name", FORMATS)
def test_round_trip(name: str, trained_qat: tf_keras.Model, digits: Images, tmp_path: Path) -> None:
    trained_qat.save(tmp_path / name)
    loaded = tfdq.load_model(tmp_path / name, safe_mode=name != "saved_model")
    check_same(loaded, trained_qat, digits[0][:200])
    # It goes on training from where it was: optimizer state and all.
    loaded.fit(digits[0][:64], digits[1][:64], verbose=0)


def test_plain_keras_loads_it_in_a_new_process(digits: Images, tmp_path: Path) -> None:
    """No scope and no tfdq call: the import of the package is enough."""
    qat = tfdq.quantize_model(
        tf_keras.Sequential([L.Conv2D(4, 3, input_shape=(8, 8, 1)), L.Flatten(), L.Dense(10)])
    )
    tfdq.calibrate(qat, digits[0])
    for name in FORMATS:
        qat.save(tmp_path / name)
    np.save(tmp_path / "images.npy", digits[0][:50])
    script = (
        "import numpy as np, tf_keras, tfdq.quantization\n"
        "images = np.load('images.npy')\n"
        f"for name in {FORMATS}:\n"
        "    model = tf_keras.models.load_model(name)\n"
        "    np.save(name + '.npy', model.predict(images, verbose=0))\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, cwd=tmp_path)
    for name in FORMATS:
        np.testing.assert_array_equal(
            np.load(tmp_path / f"{name}.npy"), qat.predict(digits[0][:50], verbose=0)
        )


def test_clone_has_penalty_and_quantizers_once(trained_qat: tf_keras.Model, digits: Images) -> None:
    clone = tf_keras.models.clone_model(trained_qat)
    clone.set_weights(trained_qat.get_weights())
    check_same(clone, trained_qat, digits[0][:50])


def test_a_foreign_quantize_config_survives_keras_files(tmp_path: Path, digits: Images) -> None:
    """A config of tfmot's own kind, on a layer tfdq leaves to it."""
    annotate = tfmot.quantization.keras.quantize_annotate_layer
    foreign = _dense_config()
    model = tf_keras.Sequential(
        [
            L.Input((8, 8, 1)),
            L.Conv2D(4, 3, activation="relu"),
            L.Flatten(),
            annotate(L.Dense(10, name="head"), foreign),
        ]
    )
    qat = tfdq.quantize_model(model, activation_bits=4)
    assert isinstance(qat.get_layer("quant_head").quantize_config, type(foreign))
    qat.compile("adam", "mse")
    qat.fit(digits[0][:64], np.zeros((64, 10)), verbose=0)
    qat.save(tmp_path / "model.keras")
    with tfdq.quantize_scope({type(foreign).__name__: type(foreign)}):
        loaded = tfdq.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(
        loaded.predict(digits[0][:9], verbose=0), qat.predict(digits[0][:9], verbose=0)
    )


def _dense_config() -> tfmot.quantization.keras.QuantizeConfig:
    from tensorflow_model_optimization.python.core.quantization.keras.default_8bit import (
        default_8bit_quantize_registry as registry,
    )

    return registry.Default8BitQuantizeRegistry().get_quantize_config(L.Dense(1))


def test_composes_with_tfmot_annotation_and_apply(tmp_path: Path, digits: Images) -> None:
    annotate = tfmot.quantization.keras.quantize_annotate_layer
    config = DefensiveQuantizeConfig(KernelQuantizer(3), FixedRangeQuantizer(2))
    model = tf_keras.Sequential(
        [
            L.Conv2D(8, 3, use_bias=False, input_shape=(8, 8, 1), name="float_conv"),
            annotate(L.Conv2D(4, 3, activation="relu", name="mine"), config),
            annotate(L.Conv2D(4, 3, name="default")),
            annotate(L.BatchNormalization()),
            annotate(L.ReLU()),
            L.Flatten(),
            L.Dense(10, name="float_head"),
        ]
    )
    scheme = tfdq.DefensiveQuantizeScheme(lipschitz_beta=1e-3, activation_bits=4)
    qat = tfmot.quantization.keras.quantize_apply(model, scheme)
    assert qat.get_layer("quant_mine").bits == (3, 2)
    assert qat.get_layer("quant_default").bits == (8, 4)
    assert len(qat.losses) == 2
    assert type(qat.get_layer("float_head")) is L.Dense
    qat.compile("adam", "mse")
    qat.fit(digits[0][:64], np.zeros((64, 10)), verbose=0)
    qat.save(tmp_path / "model.keras")
    loaded = tfdq.load_model(tmp_path / "model.keras")
    assert len(loaded.losses) == 2
    np.testing.assert_array_equal(
        loaded.predict(digits[0][:9], verbose=0), qat.predict(digits[0][:9], verbose=0)
    )


def test_our_config_serves_tfmots_own_scheme(digits: Images) -> None:
    config = DefensiveQuantizeConfig(KernelQuantizer(4), FixedRangeQuantizer(4))
    annotated = tfmot.quantization.keras.quantize_annotate_layer(
        L.Conv2D(4, 3, activation="relu", input_shape=(8, 8, 1)), config
    )
    model = tf_keras.Sequential([annotated, L.Flatten(), L.Dense(3)])
    with tfdq.quantize_scope():
        qat = tfmot.quantization.keras.quantize_apply(model)
    qat.compile("adam", "mse")
    qat.fit(digits[0][:64], np.zeros((64, 3)), verbose=0)
    inner = tf_keras.Model(qat.input, qat.layers[1].output)
    steps = inner.predict(digits[0][:16], verbose=0) / (6 / 15)
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-4)


def test_load_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no model at"):
        tfdq.load_model(tmp_path / "nothing.keras")
    with pytest.raises(ValueError, match="not a SavedModel"):
        tfdq.load_model(tmp_path)
    for name in ("broken.h5", "broken.keras"):
        (tmp_path / name).write_bytes(b"not a model")
        with pytest.raises(ValueError, match="broken"):
            tfdq.load_model(tmp_path / name)
