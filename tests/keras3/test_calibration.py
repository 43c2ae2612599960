"""Ranges and BatchNorm statistics from images: what moves, and to what."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from tfdq.batch_statistics import PooledStatistics
from tfdq.keras3 import calibrate, quantize_model

L = keras.layers
pytestmark = pytest.mark.backends
only_with_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="is alike on each backend"
)
IMAGES = np.random.default_rng(0).random((22, 6)).astype(np.float32)


def numpy(tensor: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def network() -> Any:
    """A Dense with BatchNorm whose integers are easily made again in NumPy, and a frozen one."""
    keras.utils.set_random_seed(0)
    image = keras.Input((6,), name="image")
    x = L.ReLU()(L.BatchNormalization(name="norm")(L.Dense(5, use_bias=False, name="first")(image)))
    x = L.Dropout(0.5)(x)
    x = L.BatchNormalization(name="frozen", trainable=False)(L.Dense(4, name="second")(x))
    model = keras.Model(image, L.Dense(3)(x))
    model.get_layer("norm").moving_variance.assign(np.full(5, 9.0))
    return quantize_model(model, 1e-3, input_range=(0.0, 1.0), regularizer="srip")


def test_statistics_are_those_of_all_images() -> None:
    model = network()
    kernel = numpy(model.get_layer("first").kernel)
    before = [numpy(v).copy() for v in model.get_layer("second").variables[:4]]
    steps = np.abs(kernel).max(0) / 127
    rounded = np.rint(IMAGES * 255) / 255 @ (np.rint(kernel / steps) * steps)
    # JAX compiles each operation anew for a batch of another size.
    assert calibrate(model, IMAGES, batch_size=11, batch_norm=True) is model
    first = model.get_layer("first")
    np.testing.assert_allclose(numpy(first.moving_mean), rounded.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(numpy(first.moving_variance), rounded.var(0), rtol=1e-4)
    np.testing.assert_array_equal(numpy(first.kernel), kernel)
    for old, new in zip(before, model.get_layer("second").variables[:4], strict=True):
        np.testing.assert_array_equal(old, numpy(new))
    # Ranges are those of the network with these statistics.
    normal = (rounded - rounded.mean(0)) / np.sqrt(rounded.var(0) + 1e-3)
    assert float(numpy(first.range.high)) == pytest.approx(normal[:11].max(), rel=0.3)
    assert np.isfinite(numpy(model(IMAGES, training=False))).all()


def test_batches_of_different_sizes_count_by_their_images() -> None:
    pooled = PooledStatistics()
    for batch in (IMAGES[:3], IMAGES[3:13], IMAGES[13:]):
        pooled.take(len(batch), batch.mean(0), batch.var(0))
    mean, variance = pooled.pooled()
    np.testing.assert_allclose(mean, IMAGES.mean(0), rtol=1e-6)
    np.testing.assert_allclose(variance, IMAGES.var(0), rtol=1e-5)
    assert mean.dtype == variance.dtype == np.float32


def test_images_may_have_the_forms_that_are_known() -> None:
    wanted = numpy(calibrate(network(), IMAGES, batch_size=11).get_layer("first").range.high)
    for form in (list(IMAGES), [IMAGES[:11], IMAGES[11:]], (IMAGES, np.arange(22) % 3)):
        found = calibrate(network(), form, batch_size=11).get_layer("first").range.high
        np.testing.assert_array_equal(numpy(found), wanted)
    pair = {name: keras.Input((6,), name=name) for name in ("b", "a")}
    model = keras.Model(pair, L.Add()(list(pair.values())))
    model = calibrate(quantize_model(model), {"a": IMAGES, "b": IMAGES * 3.0})
    for name, factor in (("a", 1.0), ("b", 3.0)):
        grid = model.get_layer(f"{name}_quantizer").grid()
        high = grid.scale * (grid.qmax - grid.zero_point)
        assert high == pytest.approx(factor * IMAGES.max(), rel=1e-3)


@only_with_tensorflow
@pytest.mark.parametrize("layer", [L.LayerNormalization, L.RMSNormalization])
def test_an_epsilon_that_matters_is_named_with_the_variance_and_its_effect(layer: Any) -> None:
    """Half of the vectors are zeros, on which an epsilon has no effect."""
    images = np.random.default_rng(1).normal(0, 0.02, (22, 3, 16)).astype(np.float32)
    images[::2] = 0.0
    image = keras.Input((3, 16))
    norm = layer(epsilon=1e-3, name="it")
    model = keras.Model(image, norm(image))
    with pytest.warns(UserWarning, match="'it'") as caught:
        quantized = calibrate(quantize_model(model, 0.0), images, batch_size=5)
    (warning,) = (one for one in caught if one.category is UserWarning)
    assert warning.filename == __file__
    found = re.search(r"epsilon (\S+), variance (\S+), results (\d+) %", str(warning.message))
    assert found is not None
    epsilon, variance, excess = map(float, found.groups())
    given = images[1::2]
    centred = given - given.mean(-1, keepdims=True) if layer is L.LayerNormalization else given
    assert epsilon == 1e-3
    assert variance == pytest.approx(np.square(centred).mean(), rel=0.05)
    norms = [np.linalg.norm(m(given, training=False), axis=-1) for m in (model, quantized)]
    assert excess / 100 == pytest.approx(1 - (norms[0] / norms[1]).mean(), abs=0.02)


@only_with_tensorflow
def test_an_epsilon_that_is_small_beside_the_variance_is_not_spoken_of() -> None:
    image = keras.Input((6,))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        calibrate(quantize_model(keras.Model(image, L.LayerNormalization()(image)), 0.0), IMAGES)
    assert not [one for one in caught if one.category is UserWarning]


@only_with_tensorflow
def test_an_epsilon_is_still_known_when_the_model_was_saved(tmp_path: Path) -> None:
    image = keras.Input((6,))
    model = quantize_model(keras.Model(image, L.LayerNormalization(name="it")(image)), 0.0)
    calibrate(model, IMAGES).save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    with pytest.warns(UserWarning, match=r"'it' \(epsilon 0.001") as caught:
        calibrate(again, IMAGES * 0.02)
    assert [one.category for one in caught].count(UserWarning) == 1


def test_what_cannot_be_calibrated_is_named() -> None:
    model = quantize_model(keras.Sequential([keras.Input((6,)), L.Dense(2)]))
    with pytest.raises(ValueError, match="no BatchNormalization that follows training"):
        calibrate(model, IMAGES, batch_norm=True)
    with pytest.raises(ValueError, match=r"shape \(22, 5\), but input"):
        calibrate(model, IMAGES[:, :5])
    with pytest.raises(ValueError, match="NaN or infinite"):
        calibrate(model, IMAGES * np.nan)
