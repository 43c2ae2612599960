"""Every residual topology at every bit width: the file decides what was trained."""

from itertools import product

import numpy as np
import pytest
import tf_keras

import tfdq
import tflite_export
from tests.exhaustive import only
from tests.tflite_export.fitted import BITS, check
from tests.tflite_export.trained import digits, enlarged
from tfdq import models

NAMES = ["resnet20", "wide_resnet", "inverted", "convex"]


@pytest.mark.parametrize(
    "setting", only([*product(NAMES, BITS)], ("wide_resnet", 2), ("inverted", 4)), ids=str
)
def test_file_computes_and_decides_what_was_trained(setting):
    check(*setting)


@pytest.mark.parametrize("setting", only([(8, "int8"), (4, "int4"), (2, "int8")], (4, "int4")))
def test_the_whole_of_mobilenet_v2(setting):
    """Its 52 convolutions, untrained: to trace one training step of them takes too long."""
    bits, weights = setting
    tf_keras.utils.set_random_seed(bits)
    images = enlarged(digits()[0], 16)[-256:]
    model = models.mobilenet_v2((16, 16, 1), 10, alpha=0.35)
    qat = tfdq.quantize_model(model, 0.0, weight_bits=bits, activation_bits=bits)
    tfdq.calibrate(qat, images[:64])
    exported = tflite_export.convert(
        qat, calibration=images[:32], weights=weights, min_agreement=0.0
    )
    np.testing.assert_array_equal(
        exported.twin().integers(images).numpy(), exported.interpreter().integers(images)
    )
    assert tflite_export.integer_only(exported.content)
    if weights == "int4":
        plain = tflite_export.convert(qat, calibration=images[:32], min_agreement=0.0)
        assert len(exported) < 0.75 * len(plain)
