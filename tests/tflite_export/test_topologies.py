"""Every topology at every bit width: the file computes the twin's integers, the trained ones."""

import numpy as np
import pytest

import tflite_export
from tests.tflite_export.topologies import BUILDERS
from tests.tflite_export.trained import digits, enlarged, quantized
from tflite_export.graph import integers_in_use

NAMES = [name for name in BUILDERS if name != "small"]
COUNT = 1024


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("name", NAMES)
def test_file_computes_what_was_trained(name, bits):
    qat = quantized(name, max(bits, 2), bits)
    images = enlarged(digits()[0], qat.input_shape[1])[-COUNT:]
    exported = tflite_export.convert(qat, calibration=images[:32], min_agreement=0.9)

    runtime = exported.interpreter().integers(images)
    twin = exported.twin()
    batches = [images[i : i + 256] for i in range(0, COUNT, 256)]
    np.testing.assert_array_equal(
        np.concatenate([twin.integers(batch).numpy() for batch in batches]), runtime
    )

    trained = np.concatenate([qat(batch, training=False).numpy() for batch in batches])
    same = trained.argmax(-1) == runtime.argmax(-1)
    # a network rounded to one or two bits without training decides by its last rounding
    guesses = (trained.argmax(-1) == digits()[1][-COUNT:]).mean() < 0.5
    assert same.mean() >= (0.95 if guesses else 0.995)
    if bits == 8:
        best = np.sort(trained, axis=-1)
        step = exported.graph.tensors[exported.graph.outputs[0]].scale
        clear = best[:, -1] - best[:, -2] > 2.5 * step
        assert same[clear].mean() >= 0.999
    assert tflite_export.integer_only(exported.content)


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
