"""Every residual topology at every bit width: the file decides what was trained."""

import numpy as np
import pytest

import tflite_export
from tests.tflite_export.fitted import check
from tests.tflite_export.trained import digits, enlarged, quantized


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("name", ["resnet20", "wide_resnet", "inverted", "convex"])
def test_file_computes_and_decides_what_was_trained(name, bits):
    check(name, bits)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_whole_of_mobilenet_v2(bits):
    """Its 52 convolutions, not trained quantization-aware: one such step is minutes of tracing."""
    qat = quantized("mobilenet_v2", bits, bits)
    images = enlarged(digits()[0], 16)[-256:]
    exported = tflite_export.convert(qat, calibration=images[:32])
    np.testing.assert_array_equal(
        exported.twin().integers(images).numpy(), exported.interpreter().integers(images)
    )
    assert tflite_export.integer_only(exported.content)
