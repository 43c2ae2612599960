"""Every level, every bin edge and every gradient against NumPy."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfdq.grid import nudged_grid, zero_aligned_range
from tfdq.quantization import (
    FixedRangeQuantizer,
    InputQuantizer,
    KernelQuantizer,
    ObservedRangeQuantizer,
)

BITS = range(1, 9)


def fixed(x: np.ndarray, quantizer: FixedRangeQuantizer) -> np.ndarray:
    return quantizer(tf.constant(x, tf.float32), False, {}).numpy()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("high", [6.0, 1.0, 2.7])
def test_every_level_is_itself(bits: int, high: float) -> None:
    step = high / (2**bits - 1)
    levels = np.arange(2**bits) * step
    np.testing.assert_allclose(fixed(levels, FixedRangeQuantizer(bits, 0, high)), levels, rtol=2e-6)


@pytest.mark.parametrize("bits", BITS)
def test_both_sides_of_every_bin_edge(bits: int) -> None:
    step = 6.0 / (2**bits - 1)
    lower = np.arange(2**bits - 1)
    edges = (lower + 0.5) * step
    near = 1e-3 * step
    quantizer = FixedRangeQuantizer(bits)
    np.testing.assert_allclose(fixed(edges - near, quantizer), lower * step, rtol=1e-6)
    np.testing.assert_allclose(fixed(edges + near, quantizer), (lower + 1) * step, rtol=1e-6)


@pytest.mark.parametrize("bits", BITS)
def test_saturates_outside(bits: int) -> None:
    got = fixed(np.array([-1e9, -1e-6, 6.0001, 1e9]), FixedRangeQuantizer(bits))
    np.testing.assert_allclose(got, [0, 0, 6, 6], rtol=1e-6)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("compiled", [False, True])
def test_gradient_is_straight_through_inside_and_zero_outside(bits: int, compiled: bool) -> None:
    x = tf.constant([-3.0, -0.01, 0.01, 1.3, 3.0, 5.99, 6.01, 40.0])
    upstream = tf.constant([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    quantizer = FixedRangeQuantizer(bits)

    @tf.function(jit_compile=compiled)
    def gradient(x: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = quantizer(x, True, {})
        return tape.gradient(y, x, output_gradients=upstream)

    np.testing.assert_array_equal(gradient(x), [0, 0, 3, 4, 5, 6, 0, 0])


@pytest.mark.parametrize("bits", BITS)
def test_grid_of_a_fixed_range_is_what_the_quantizer_uses(bits: int) -> None:
    grid = FixedRangeQuantizer(bits).grid({})
    assert (grid.zero_point, grid.qmin, grid.qmax) == (-128, -128, -128 + 2**bits - 1)
    x = np.linspace(-1, 8, 4001, dtype=np.float32)
    integers = np.clip(np.floor(x / np.float32(grid.scale) + 0.5), 0, 2**bits - 1)
    distance = np.abs(x / np.float32(grid.scale) % 1 - 0.5)
    off_edge = distance > 1e-4
    np.testing.assert_allclose(
        fixed(x, FixedRangeQuantizer(bits))[off_edge],
        (integers * np.float32(grid.scale))[off_edge],
        rtol=1e-6,
    )


@settings(max_examples=200, deadline=None)
@given(
    bits=st.integers(2, 8),
    low=st.floats(-50, -0.0625, width=32, allow_subnormal=False),
    high=st.floats(0.0625, 50, width=32, allow_subnormal=False),
    data=st.data(),
)
def test_identity_on_its_own_grid(bits: int, low: float, high: float, data: st.DataObject) -> None:
    grid = nudged_grid(low, high, bits)
    n = data.draw(st.integers(grid.qmin, grid.qmax))
    point = np.float32(grid.scale) * np.float32(n - grid.zero_point)
    got = fixed(np.array([point]), FixedRangeQuantizer(bits, low, high))
    np.testing.assert_allclose(got, [point], rtol=1e-5, atol=1e-5 * grid.scale)
    again = fixed(got, FixedRangeQuantizer(bits, low, high))
    np.testing.assert_array_equal(again, got)


@settings(max_examples=60, deadline=None)
@given(bits=st.integers(2, 8), seed=st.integers(0, 2**31), depthwise=st.booleans())
def test_kernel_against_numpy(bits: int, seed: int, depthwise: bool) -> None:
    kernel = np.random.default_rng(seed).normal(size=(3, 3, 4, 5)).astype(np.float32)
    columns = kernel.reshape(9, 20) if depthwise else kernel.reshape(36, 5)
    scale = np.abs(columns).max(0) / (2 ** (bits - 1) - 1)
    ratio = columns / scale
    expected = np.floor(ratio + 0.5)
    # A ratio that float32 cannot tell from a bin edge may go either way.
    clear = np.abs(ratio % 1 - 0.5) > 1e-4
    quantizer = KernelQuantizer(bits, depthwise=depthwise)
    integers, scales = quantizer.integers(tf.constant(kernel))
    np.testing.assert_array_equal(integers.reshape(columns.shape)[clear], expected[clear])
    assert np.abs(integers).max() == 2 ** (bits - 1) - 1
    np.testing.assert_allclose(scales, scale, rtol=1e-6)
    fake = quantizer(tf.constant(kernel), True, {}).numpy().reshape(columns.shape)
    np.testing.assert_allclose(fake, integers.reshape(columns.shape) * scales, rtol=1e-5, atol=1e-7)
    again = quantizer.integers(tf.constant(fake.reshape(kernel.shape)))[0]
    np.testing.assert_array_equal(again, integers)


def test_kernel_gradient_passes_everywhere() -> None:
    kernel = tf.Variable(np.random.default_rng(0).normal(size=(3, 3, 2, 4)).astype(np.float32))
    weights = np.random.default_rng(1).normal(size=kernel.shape).astype(np.float32)
    for quantizer in (KernelQuantizer(3), KernelQuantizer(3, per_channel=False)):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(quantizer(kernel, True, {}) * weights)
        np.testing.assert_allclose(tape.gradient(loss, kernel), weights)


def test_a_dead_channel_quantizes_to_zero() -> None:
    kernel = np.ones((3, 3, 2, 2), np.float32)
    kernel[..., 1] = 0
    integers, scales = KernelQuantizer(4).integers(tf.constant(kernel))
    assert not integers[..., 1].any()
    assert np.isfinite(scales).all()
    assert (scales > 0).all()


def test_observed_range_follows_the_batches_in_training_only() -> None:
    layer = InputQuantizer(ObservedRangeQuantizer(8))
    first = tf.constant([[-1.0, 3.0]])
    np.testing.assert_array_equal(layer(first, training=False), first)  # nothing seen: passes
    layer(first, training=True)
    layer(tf.constant([[-3.0, 5.0]]), training=True)
    low, high, seen = layer.get_weights()
    np.testing.assert_allclose([low, high, seen], [-1.02, 3.02, 1.0], rtol=1e-6)
    layer(tf.constant([[-30.0, 50.0]]), training=False)
    np.testing.assert_array_equal(layer.get_weights(), [low, high, seen])


def test_extremes_keep_the_widest() -> None:
    layer = InputQuantizer(ObservedRangeQuantizer(8, update="extremes"))
    for batch in ([0.2, 0.7], [0.0, 1.0], [0.4, 0.5]):
        layer(tf.constant([batch]), training=True)
    assert layer.output_grid().zero_point == -128
    np.testing.assert_allclose(layer.output_grid().scale, 1 / 255, rtol=1e-6)


@pytest.mark.parametrize(
    ("low", "high"), [(-1.0, 1.0), (-2.1, 2.6), (-0.01, 5.0), (-3.0, 0.001), (0.0, 1.0)]
)
def test_zero_aligned_range_holds_the_range_and_zero(low, high) -> None:
    ends = zero_aligned_range(low, high, 8)
    assert ends[0] <= low
    assert ends[1] >= high
    steps = -255 * ends[0] / (ends[1] - ends[0])
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-9)
    if min(-low, high) > 0.1:
        assert ends[1] - ends[0] < (high - low) * (1 + 1 / 64)


def test_extremes_are_aligned_and_stay_put() -> None:
    layer = InputQuantizer(ObservedRangeQuantizer(8, update="extremes"))
    for _ in range(50):
        layer(tf.constant([[-1.0, 1.0]]), training=True)
    low, high, _ = layer.get_weights()
    np.testing.assert_allclose([low, high], zero_aligned_range(-1.0, 1.0, 8), rtol=1e-6)


def test_pixels_in_minus_one_to_one_keep_apart() -> None:
    """On a grid of 255 steps each would lie half-way between two integers."""
    pixels = (np.arange(256, dtype=np.float32) / np.float32(127.5) - 1)[None]
    layer = InputQuantizer(ObservedRangeQuantizer(8, update="extremes"))
    assert len(np.unique(layer(tf.constant(pixels), training=True))) >= 255


@pytest.mark.parametrize("low", [0.0, -1.0])
def test_input_rounds_as_the_runtime_with_the_identitys_gradient(low) -> None:
    quantizer = FixedRangeQuantizer(8, *zero_aligned_range(low, 1.0, 8))
    layer = InputQuantizer(quantizer)
    grid = quantizer.grid({})
    scale = np.float32(grid.scale)
    x = ((np.arange(-300, 600) + 0.5) * scale).astype(np.float32)
    steps = np.rint(x * (np.float32(1) / scale))
    expected = np.clip(steps, grid.qmin - grid.zero_point, grid.qmax - grid.zero_point) * scale
    variable = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(variable)
        out = layer(variable)
    np.testing.assert_array_equal(out, expected)
    inside = (x >= (grid.qmin - grid.zero_point) * scale) & (
        x <= (grid.qmax - grid.zero_point) * scale
    )
    np.testing.assert_array_equal(tape.gradient(out, variable), inside.astype(np.float32))


def test_an_all_zero_batch_trains_but_has_no_grid() -> None:
    layer = InputQuantizer(ObservedRangeQuantizer(4, nonnegative=True), name="image")
    np.testing.assert_array_equal(layer(tf.zeros((2, 3)), training=True), 0.0)
    with pytest.raises(ValueError, match=r"'image'.*no data but zeros.*calibrate"):
        layer.output_grid()
    layer(tf.ones((2, 3)), training=True)
    assert layer.output_grid().scale > 0


def test_no_data_is_an_error_that_says_what_to_do() -> None:
    layer = InputQuantizer(ObservedRangeQuantizer(8), name="image")
    layer(tf.zeros((1, 2)))
    with pytest.raises(ValueError, match=r"'image'.*calibrate"):
        layer.output_grid()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FixedRangeQuantizer(0), "1..8, got 0"),
        (lambda: FixedRangeQuantizer(9), "1..8, got 9"),
        (lambda: FixedRangeQuantizer(True), "integer"),
        (lambda: FixedRangeQuantizer(4.0), "integer"),
        (lambda: FixedRangeQuantizer(4, 1.0, 2.0), "contain 0"),
        (lambda: FixedRangeQuantizer(4, 0.0, float("nan")), "finite"),
        (lambda: FixedRangeQuantizer(1, -1.0, 1.0), "starts at 0"),
        (lambda: KernelQuantizer(1), "2..8, got 1"),
        (lambda: ObservedRangeQuantizer(8, update="last"), "'last'"),
        (lambda: ObservedRangeQuantizer(1), "nonnegative"),
    ],
)
def test_bad_arguments(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
