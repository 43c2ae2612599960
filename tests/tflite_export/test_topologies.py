"""Every topology at every bit width: the file computes the twin's integers, the trained ones."""

import numpy as np
import pytest

import tflite_export
from tests.exhaustive import spread
from tests.tflite_export.fitted import BITS, check
from tests.tflite_export.trained import digits, quantized
from tflite_export.runtime.in_use import integers_in_use


@pytest.mark.parametrize(
    ("name", "bits"), spread(["dense", "softmax", "vgg", "separable", "concat"], BITS, 8)
)
def test_file_computes_and_decides_what_was_trained(name, bits):
    check(name, bits)


@pytest.mark.parametrize("weights", [2, 3, 5, 8])
@pytest.mark.parametrize("activations", [1, 3, 8])
def test_bits_of_weights_and_activations_are_independent(weights, activations):
    qat = quantized("small", weights, activations)
    exported = tflite_export.convert(qat, calibration=digits()[0][:64])
    rows = {row["layer"]: row for row in exported.quantization}
    hidden = rows["stem_conv"]
    assert hidden["weight_bits"] == weights
    assert hidden["activation_bits"] == activations
    values = exported.twin().activations(digits()[0][:256])
    index = next(i for i, t in enumerate(exported.graph.tensors) if t.name == "stem_conv")
    assert len(np.unique(values[index].numpy())) <= 2**activations
    low, high = integers_in_use(exported.graph)[index]
    assert high - low == 2**activations - 1


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_observed_ranges_clamp_at_the_last_level(bits):
    """A range that is not [0, 6] has no fused activation; the end of int8 stands in for it."""
    qat = quantized("small", 4, bits, activation_range="moving_average")
    images = digits()[0][:1000]
    exported = tflite_export.convert(qat, calibration=images[:128])
    twin = exported.twin()
    np.testing.assert_array_equal(
        twin.integers(images).numpy(), exported.interpreter().integers(images)
    )
    # far outside of what was observed, so that every clamp works
    report = tflite_export.verify(qat, exported, 40.0 * images[:64] - 20.0)
    assert report.exact
    assert report.worst_layer().largest <= 1


def test_a_sum_of_three_keeps_its_bound():
    """Integer kernels add two tensors; the partial sum is rounded to 8 bits in between."""
    import tf_keras

    import tfdq

    tf_keras.utils.set_random_seed(5)
    layers = tf_keras.layers
    image = layers.Input((8, 8, 1))
    branches = [layers.Conv2D(6, size, padding="same")(image) for size in (1, 2, 3)]
    x = layers.ReLU(6.0)(layers.Add(name="three")(branches))
    model = tf_keras.Model(image, layers.Dense(4)(layers.Flatten()(x)))
    images = digits()[0]
    qat = tfdq.calibrate(tfdq.quantize_model(model, 0.0), images[:256])
    exported = tflite_export.convert(qat, calibration=images[:64], min_agreement=0.0)
    report = tflite_export.verify(qat, exported, images[:512])
    assert report.exact
    sums = [c for c in report.layers if c.left == "model" and c.tensor.startswith("three")]
    assert [c.largest <= 2 for c in sums] == [True]
    assert all(c.largest <= 1 for c in report.layers if c.left == "model" and c not in sums)
