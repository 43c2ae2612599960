"""The smallest member of each family of keras.applications, with random weights, 8 bits.

Its integer file computes what the quantized model does, integer for integer. Each run tries the
first blocks of two, ``make exhaustive`` all.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest

from tests.exhaustive import only
from tfdq.keras3 import calibrate, quantize_model
from tflite_export import convert

SIDES = {
    "ConvNeXtTiny": 32,
    "DenseNet121": 32,
    "EfficientNetB0": 32,
    "EfficientNetV2B0": 32,
    "InceptionResNetV2": 75,
    "InceptionV3": 75,
    "MobileNet": 32,
    "MobileNetV2": 32,
    "MobileNetV3Small": 32,
    "NASNetMobile": 32,
    "ResNet50": 32,
    "ResNet50V2": 32,
    "VGG16": 32,
    "Xception": 71,
}
"""The families that go through: name -> side of the smallest images."""


def application(name: str, **settings: object) -> keras.Model:
    keras.utils.set_random_seed(0)
    build = getattr(keras.applications, name)
    side = SIDES.get(name, 32)
    return build(input_shape=(side, side, 3), weights=None, classes=10, **settings)


def assert_exact(model: keras.Model) -> None:
    quantized = quantize_model(model, 0.0)
    shape = (4, *model.input_shape[1:])
    images = np.random.default_rng(0).uniform(0, 255, shape).astype(np.float32)
    # Once in training: with the statistics of new BatchNormalizations the outputs are constant.
    quantized(images, training=True)
    exported = convert(calibrate(quantized, images), calibration=images)
    assert exported.parity.exact
    assert len(np.unique(quantized.predict(images, verbose=0))) > 2


@pytest.mark.parametrize("name", only([*SIDES]))
def test_the_file_computes_every_integer_of_the_model(name: str) -> None:
    assert_exact(application(name))


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("MobileNetV3Small", "expanded_conv_project_bn"),
        ("EfficientNetB0", "block1a_project_bn"),
    ],
)
def test_the_file_computes_every_integer_of_the_first_blocks(name: str, block: str) -> None:
    whole = application(name)
    assert_exact(keras.Model(whole.input, whole.get_layer(block).output))
