"""`convert` warns where BatchNorm's moving statistics are not the network's own."""

from __future__ import annotations

import re
import warnings
from typing import Any

import keras
import numpy as np
import pytest
import tf_keras

import tfdq
from tests.tflite_export.trained import digits
from tfdq.quantization import LaggingStatisticsWarning
from tflite_export import convert

IMAGES = digits()[0][:200]


def calibrated(core: Any, frozen: bool = False) -> Any:
    """Return a quantized network with the statistics and ranges of the images."""
    layers = core.layers
    core.utils.set_random_seed(3)
    image = core.Input(IMAGES.shape[1:])
    x = layers.Conv2D(6, 3, strides=2, use_bias=False)(image)
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    x = layers.Dense(10, name="logits")(layers.Flatten()(x))
    model = core.Model(image, x)
    model.get_layer("norm").trainable = not frozen
    quantized = tfdq.quantize_model(model, input_range=(0.0, 1.0))
    return tfdq.calibrate(quantized, IMAGES, batch_norm=not frozen)


def moving_mean(model: Any) -> Any:
    return next(v for v in model.variables if "moving_mean" in getattr(v, "path", v.name))


def decisions(model: Any) -> np.ndarray:
    return np.asarray(model.predict(IMAGES, verbose=0)).argmax(axis=-1)


@pytest.mark.parametrize("core", [keras, tf_keras], ids=["keras", "tf_keras"])
def test_statistics_that_lag_are_said_with_the_share_of_decisions(core: Any) -> None:
    model = calibrated(core)
    with warnings.catch_warnings():
        warnings.simplefilter("error", LaggingStatisticsWarning)
        convert(model, calibration=IMAGES, golden=0, verify_samples=len(IMAGES))
    wanted = decisions(model)
    mean = moving_mean(model)
    moved = mean.numpy() + np.linspace(-0.3, 0.3, 6, dtype=np.float32)
    mean.assign(moved)
    share = np.mean(decisions(model) == wanted)
    assert share < 0.95
    with pytest.warns(LaggingStatisticsWarning, match="batch_norm=True") as caught:
        convert(model, calibration=IMAGES, golden=0, verify_samples=len(IMAGES))
    (warning,) = (found for found in caught if found.category is LaggingStatisticsWarning)
    assert warning.filename == __file__
    said = float(re.findall(r"([\d.]+)%", str(warning.message))[0]) / 100
    # Rounding behind the new statistics is that of training, and a few logits lie close together.
    assert said == pytest.approx(share, abs=0.03)
    np.testing.assert_array_equal(mean.numpy(), moved)


@pytest.mark.parametrize(("frozen", "images"), [(True, 200), (False, 40)])
def test_nothing_is_said_of_frozen_statistics_and_of_few_images(frozen: bool, images: int) -> None:
    model = calibrated(keras, frozen)
    mean = moving_mean(model)
    mean.assign(mean.numpy() + np.linspace(-0.3, 0.3, 6, dtype=np.float32))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        convert(model, calibration=IMAGES[:images], golden=0)
    assert not [one for one in caught if one.category is LaggingStatisticsWarning]
