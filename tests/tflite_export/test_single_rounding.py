"""Layers that used to round twice, or on ties: pools, rescalings, input between two steps."""

import numpy as np
import pytest
import tf_keras

import tfdq
import tflite_export
from tests.tflite_export.trained import digits
from tfdq.grid import Grid
from tflite_export.ir.requantization import mean_in_float32
from tflite_export.lowering.grids import mean_takes, scale_of_means

L = tf_keras.layers


def _exported(outputs, image, images, **options):
    model = tf_keras.Model(image, outputs)
    qat = tfdq.calibrate(tfdq.quantize_model(model, 0.0, **options), images[:256])
    exported = tflite_export.convert(qat, calibration=images[:64], min_agreement=0.0)
    return qat, exported


def _kinds(exported):
    return [operator.kind for operator in exported.graph.operators]


@pytest.mark.parametrize(
    ("bits", "size", "strides"), [(1, 3, 2), (4, 3, 2), (8, 3, 2), (8, 3, 1), (8, 5, 3)]
)
def test_pools_with_cut_windows_round_once(bits, size, strides):
    tf_keras.utils.set_random_seed(bits)
    image = L.Input((8, 8, 1))
    x = L.ReLU(6.0)(L.Conv2D(6, 3, use_bias=False, kernel_initializer="glorot_normal")(image))
    x = L.AveragePooling2D(size, strides, padding="same", name="pool")(x)
    images = 4 * digits()[0]
    qat, exported = _exported(L.Dense(3)(L.Flatten()(x)), image, images, activation_bits=bits)
    report = tflite_export.verify(qat, exported, images[:300])
    assert report.exact
    (pool,) = [c for c in report.layers if c.left == "model" and c.tensor.startswith("pool")]
    assert pool.identical > 0.999


@pytest.mark.parametrize("layer", [L.GlobalAveragePooling2D(), L.AveragePooling2D(8)])
def test_a_pool_over_the_whole_image_is_a_mean(layer):
    image = L.Input((8, 8, 1))
    x = L.ReLU(6.0)(L.Conv2D(5, 3, padding="same")(image))
    images = digits()[0]
    outputs = L.Dense(3)(L.Flatten()(layer(x)))
    # A range that is one batch's largest mean would make exact ties of the means.
    qat, exported = _exported(outputs, image, images, activation_range="relu6")
    assert "MEAN" in _kinds(exported)
    assert "DEPTHWISE_CONV_2D" not in _kinds(exported)
    report = tflite_export.verify(qat, exported, images[:500])
    assert report.exact
    assert all(c.identical > 0.999 for c in report.layers if c.left == "model"), str(report)


def test_a_mean_whose_scales_no_kernel_takes_is_a_convolution():
    """A layer that is all but dead has a range of almost nothing: one step at one of 64 pixels."""
    image = L.Input((8, 8, 1))
    x = L.Conv2D(5, 1, kernel_initializer=tf_keras.initializers.Constant(6 / 255))(image)
    x = L.GlobalAveragePooling2D()(L.ReLU(6.0)(x))
    images = np.zeros((64, 8, 8, 1), np.float32)
    images[:, 0, 0] = 1.0
    _, exported = _exported(L.Dense(3)(x), image, images, activation_range="relu6")
    assert "MEAN" not in _kinds(exported)
    assert not mean_takes(Grid(1.0, -128), 64, Grid(1e-6, -128))
    assert not mean_takes(Grid(1.0, -128), 1 << 17, Grid(1.0, -128))


@pytest.mark.parametrize("levels", [1, 3, 15, 255])
@pytest.mark.parametrize("count", [4, 16, 49, 64])
@pytest.mark.parametrize("ratio", [1.0, 0.5, 1 / 3, 0.1])
def test_scale_of_means_decides_ties_as_training_on_every_processor(levels, count, ratio):
    """With the product rounded before the addition, and with both in one step (FMA)."""
    grid = Grid(6 / levels, -128, -128, -128 + levels)
    target = Grid(grid.scale * ratio, -128)
    scale = scale_of_means(grid, count, target)
    assert abs(scale / np.float32(target.scale) - 1) < 2.0**-13
    sums = np.arange(-128 * count, (levels - 128) * count + 1)
    source, goal = (np.float32(grid.scale), -128), (np.float32(scale), -128)
    factor, offset = mean_in_float32(source, goal, count)
    apart = np.rint(np.float32(np.float32(sums) * factor) + offset)
    fused = np.rint((sums * float(factor) + float(offset)).astype(np.float32))
    trained = np.floor((sums + 128 * count) / (count * ratio) + 0.5 + 1e-4) - 128
    ours, theirs, trained = (np.clip(v, -128, 127) for v in (apart, fused, trained))
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(ours, trained)


@pytest.mark.parametrize(("scale", "offset"), [(2.0, -1.0), (2 / 255, -1 / 255), (1.7, -0.4)])
def test_rescaled_pixels_are_the_trained_ones(scale, offset):
    """To [-1, 1] every pixel would be half-way between two steps of a grid of 255 steps."""
    image = L.Input((8, 8, 1))
    x = L.Flatten()(L.Rescaling(scale, offset, name="rescaled")(image))
    pixels = np.arange(256, dtype=np.float32).repeat(64).reshape(256, 8, 8, 1) / np.float32(255)
    qat, exported = _exported(L.Dense(3)(x), image, pixels)
    report = tflite_export.verify(qat, exported, pixels)
    rows = [c for c in report.layers if c.left == "model" and c.tensor == "rescaled"]
    assert [c.identical for c in rows] == [1.0]


@pytest.mark.parametrize("input_range", [None, (0.0, 1.0)])
@pytest.mark.parametrize("interface", ["int8", "float32"])
def test_input_between_two_steps_goes_as_the_runtime_takes_it(interface, input_range):
    image = L.Input((8, 8, 1))
    model = tf_keras.Model(image, L.Dense(4)(L.Flatten()(image)))
    rng = np.random.default_rng(0)
    halves = (rng.integers(0, 511, (600, 8, 8, 1)) / np.float32(510)).astype(np.float32)
    halves[0, 0, 0] = [1.0]
    qat = tfdq.quantize_model(model, 0.0, input_range=input_range)
    qat = tfdq.calibrate(qat, halves)
    exported = tflite_export.convert(qat, input_type=interface, calibration=halves[:64])
    theirs = qat(halves, training=False).numpy()
    np.testing.assert_allclose(
        exported.interpreter().predict(halves),
        theirs,
        atol=1.01 * exported.graph.tensors[-1].scale if interface == "int8" else 1e-2,
    )
    same = tflite_export.verify(qat, exported, halves).between("model", "twin")
    assert same[0].identical > 0.999
