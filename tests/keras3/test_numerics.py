"""Quantizer levels, ranges and the penalty against NumPy."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from tests.keras3.networks import small_cnn
from tfdq.grid import nudged_grid, zero_aligned_range
from tfdq.keras3 import calibrate, quantize_model
from tfdq.keras3.layer_kinds import InputQuantizer, QuantizedConv2D
from tfdq.keras3.penalty import scale_blind
from tfdq.keras3.ranges import RANGE_DECAY, OutputRange, RangeSettings

pytestmark = pytest.mark.backends


def numpy(tensor: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(tensor)


def new_range(settings: RangeSettings) -> OutputRange:
    return OutputRange(keras.layers.Layer(), settings)


@pytest.mark.parametrize("bits", range(2, 9))
def test_levels_are_those_of_numpy(bits: int) -> None:
    low, high = -0.7, 2.1
    layer = InputQuantizer(output=RangeSettings(bits, fixed=(low, high)))
    grid = nudged_grid(low, high, bits)
    scale = np.float32(grid.scale)
    ends = grid.qmin - grid.zero_point, grid.qmax - grid.zero_point
    # Every level, the values a little to each side of it and of every edge between two.
    centres = np.arange(ends[0] - 2, ends[1] + 3, dtype=np.float32)
    x = np.concatenate([centres, centres + 0.49, centres - 0.49]) * scale
    wanted = np.clip(np.rint(x * (np.float32(1) / scale)), *ends)
    for training in (True, False):
        if not training:
            layer.seal_input(layer.grid())
        q, step = layer(x, training=training)
        np.testing.assert_array_equal(numpy(q), wanted)
        np.testing.assert_allclose(numpy(step), scale, rtol=1e-6)


def test_a_moving_average_starts_at_the_first_batch_and_follows() -> None:
    found = new_range(RangeSettings(8))
    found.observe(np.float32(-1.0), np.float32(2.0), follow=True)
    assert (float(numpy(found.low)), float(numpy(found.high))) == (-1.0, 2.0)
    found.observe(np.float32(-2.0), np.float32(4.0), follow=True)
    np.testing.assert_allclose(numpy(found.low), -1.0 - (1 - RANGE_DECAY), rtol=1e-6)
    np.testing.assert_allclose(numpy(found.high), 2.0 + 2 * (1 - RANGE_DECAY), rtol=1e-6)
    before = float(numpy(found.high))
    found.observe(np.float32(-9.0), np.float32(9.0), follow=False)
    assert float(numpy(found.high)) == before


def test_extremes_are_widened_so_that_zero_is_on_the_grid_and_stay() -> None:
    found = new_range(RangeSettings(8, "extremes"))
    found.observe(np.float32(-1.0), np.float32(1.0), follow=True)
    ends = float(numpy(found.low)), float(numpy(found.high))
    np.testing.assert_allclose(ends, zero_aligned_range(-1.0, 1.0, 8), rtol=1e-6)
    for _ in range(20):
        found.observe(np.float32(-0.9), np.float32(1.0), follow=True)
    assert (float(numpy(found.low)), float(numpy(found.high))) == ends


def test_a_tensor_of_zeros_has_a_step_in_training_and_no_grid() -> None:
    found = new_range(RangeSettings(4, nonnegative=True))
    steps = found.observe(np.float32(0.0), np.float32(0.0), follow=True)
    assert float(numpy(steps.step)) > 0
    with pytest.raises(ValueError, match="no data but zeros"):
        found.grid()


@pytest.mark.parametrize("on", ["kernel", "folded", "deployed"])
def test_the_penalty_is_the_closed_form(on: str) -> None:
    beta = 0.01
    x = np.random.default_rng(0).random((8, 8, 8, 1)).astype(np.float32)
    float_model = small_cnn()
    for layer in float_model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_variance.assign(np.linspace(0.5, 2.0, layer.gamma.shape[0]))
            layer.gamma.assign(np.linspace(-1.0, 1.0, layer.gamma.shape[0]))
    model = calibrate(quantize_model(float_model, beta, on=on, weight_bits=3), x)
    model(x, training=False)
    wanted = []
    for layer in model.layers:
        if not hasattr(layer, "kernel"):
            continue
        kernel = numpy(layer.kernel).astype(np.float64)
        taps = 9 if isinstance(layer, QuantizedConv2D) else 1
        matrix = kernel.reshape(-1, kernel.shape[-1])
        if on == "deployed":
            quantized = layer.quantized_kernel()
            matrix = (quantized.integers * quantized.scale).reshape(matrix.shape)
        if on != "kernel" and layer.norm is not None:
            variance = numpy(layer.moving_variance).astype(np.float64)
            matrix = matrix * numpy(layer.gamma) / np.sqrt(variance + layer.norm["epsilon"])
        rows, columns = matrix.shape
        gram = matrix.T @ matrix if columns <= rows else matrix @ matrix.T
        wanted.append(beta / 2 * np.square(gram - np.eye(len(gram)) / taps).sum())
    np.testing.assert_allclose([float(numpy(loss)) for loss in model.losses], wanted, rtol=1e-4)


def test_the_gradient_of_a_scale_blind_kernel_is_across_each_channel() -> None:
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(27, 5)).astype(np.float32)
    kernel[:, 2] *= 1e-12
    kernel[:, 3] = 0.0
    weights = rng.normal(size=(27, 5)).astype(np.float32)
    gradient = gradient_of(
        lambda k: keras.ops.sum(keras.ops.multiply(scale_blind(k), weights)), kernel
    )
    assert np.isfinite(gradient).all()
    lengths = np.linalg.norm(kernel, axis=0)
    radial = (kernel * gradient).sum(0)[lengths > 0] / lengths[lengths > 0]
    np.testing.assert_allclose(radial, 0.0, atol=1e-5)
    direction = kernel / np.where(lengths, lengths, 1.0)
    wanted = weights - direction * (direction * weights).sum(0)
    np.testing.assert_allclose(gradient[:, [0, 1, 2, 4]], wanted[:, [0, 1, 2, 4]], atol=1e-5)
    share = gradient_of(
        lambda k: keras.ops.sum(keras.ops.multiply(scale_blind(k, 0.01), weights)), kernel
    )
    np.testing.assert_allclose(share, 0.01 * gradient, rtol=1e-5, atol=1e-7)


def gradient_of(function: Any, x: np.ndarray) -> np.ndarray:
    """Return the gradient of a scalar function on the running backend."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return np.asarray(jax.grad(function)(x))
    if backend == "torch":
        import torch

        leaf = torch.tensor(x, requires_grad=True)
        function(leaf).backward()
        return leaf.grad.numpy()
    import tensorflow as tf

    leaf = tf.Variable(x)
    with tf.GradientTape() as tape:
        value = function(tf.convert_to_tensor(leaf))
    return tape.gradient(value, leaf).numpy()


def test_inference_has_the_gradient_of_the_smooth_network() -> None:
    x = np.random.default_rng(0).random((4, 8, 8, 1)).astype(np.float32)
    model = calibrate(quantize_model(small_cnn(), 0.0), x)
    gradient = gradient_of(lambda v: keras.ops.sum(model(v, training=False)[:, 0]), x)
    assert np.isfinite(gradient).all()
    assert np.count_nonzero(gradient) > gradient.size // 2
