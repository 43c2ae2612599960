"""What a call, or that of a model around it, says of ``training``: held, or refused by name."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from tfdq.keras3 import QuantizedModel, calibrate, quantize_model

L = keras.layers
pytestmark = pytest.mark.backends

IMAGES = np.random.default_rng(0).uniform(1, 2, (16, 6, 6, 3)).astype(np.float32)
NOISE = {
    "Dropout": lambda: L.Dropout(0.5, name="it"),
    "GaussianNoise": lambda: L.GaussianNoise(1.0, name="it"),
    "RandomBrightness": lambda: L.RandomBrightness(0.5, value_range=(0, 2), name="it"),
}


def inside(call: dict[str, Any], around: dict[str, Any], layer: keras.layers.Layer) -> keras.Model:
    """Return a model that calls a layer inside a model, each with arguments of its own."""
    inner_image, image = keras.Input((6, 6, 3)), keras.Input((6, 6, 3))
    inner = keras.Model(inner_image, layer(inner_image, **call), name="inner")
    flat = L.Flatten()(inner(image, **around))
    return keras.Model(image, L.Dense(2, kernel_initializer="ones")(flat))


def acts(model: QuantizedModel) -> bool:
    """Tell whether a training step makes something else of an image than inference."""
    calibrate(model, IMAGES)
    expected = model.predict(IMAGES, verbose=0)
    found = keras.ops.convert_to_numpy(model(IMAGES, training=True))
    return bool(np.abs(found - expected).max() > 0.02 * np.abs(expected).max())


@pytest.mark.parametrize("name", NOISE)
def test_noise_acts_in_training_unless_the_model_around_is_in_inference_mode(name: str) -> None:
    assert acts(quantize_model(inside({}, {}, NOISE[name]()), 0.0))
    assert not acts(quantize_model(inside({}, {"training": False}, NOISE[name]()), 0.0))


@pytest.mark.parametrize(
    ("call", "around"), [({"training": True}, {}), ({}, {"training": True})], ids=str
)
@pytest.mark.parametrize("layer", [L.Dropout, L.BatchNormalization])
def test_training_mode_at_inference_is_refused(layer: Any, call: Any, around: Any) -> None:
    it = layer(0.5, name="it") if layer is L.Dropout else layer(name="it")
    with pytest.raises(ValueError, match=r"'it' \(\w+\): it is called with training=True"):
        quantize_model(inside(call, around, it), 0.0)


@pytest.mark.parametrize(
    ("call", "around", "follows"),
    [
        ({}, {}, True),
        ({"training": False}, {}, False),
        ({}, {"training": False}, False),
        ({"training": False}, {"training": True}, False),
    ],
    ids=str,
)
def test_statistics_follow_what_the_inner_call_says_first(
    call: Any, around: Any, follows: bool
) -> None:
    model = quantize_model(inside(call, around, L.BatchNormalization(name="it")), 0.0)
    calibrate(model, IMAGES)
    statistics = model.get_layer("it").moving_mean
    before = keras.ops.convert_to_numpy(statistics).copy()
    model(IMAGES, training=True)
    assert np.array_equal(keras.ops.convert_to_numpy(statistics), before) != follows
