"""Rounding and clamping in keras.ops: exact values, straight-through gradients.

A compiler may fuse a product and a sum into one operation that rounds once, or multiply by a
reciprocal where a division by a constant is written. So exact values are never the sum of a product
and another number, and never a quotient by a number that the compiler knows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from keras import ops

from tflite_export.ir.graph import INTEGER_RANGES, Tensor
from tflite_export.ir.requantization import (
    Rescale,
    fixed_point,
    scale_and_cut,
    scale_in_eights,
    scale_on_avx2,
    scale_once,
    scale_upward,
    scale_wide,
    wide_multipliers,
)
from tflite_export.ops.twin_wide import wide_numbers

Reach = tuple[np.ndarray, np.ndarray]
"""The least and the greatest real number that each channel can come to, float64 ``(channels,)``."""

_SURELY_ROUNDED = 0.499


def straight_through(
    exact: Any,
    smooth: Any,
    low: float,
    high: float,
    rectified: bool,
    reach: Reach | None = None,
) -> Any:
    """The value of ``exact`` clamped to ``[low, high]``, with the gradient of clamping ``smooth``.

    An end that nothing can pass stops no gradient. Such are the clamps of a change of grid: a black
    pixel lies on the lower one exactly, and a ReLU's zero slope there would hide from an attack
    that the pixel can be made brighter.

    Args:
        exact: integers, any shape.
        smooth: the real numbers they were rounded from, same shape.
        low: smallest integer that is left.
        high: largest integer that is left.
        rectified: the lower end comes from a ReLU, whose gradient is zero there.
        reach: how far ``smooth`` can go; not known if None.
    """
    lower, upper = np.array(low, np.float32), np.array(high, np.float32)
    if reach is not None:
        lower = np.where(reach[0] > low - _SURELY_ROUNDED, -np.inf, low).astype(np.float32)
        upper = np.where(reach[1] < high + _SURELY_ROUNDED, np.inf, high).astype(np.float32)

    @ops.custom_gradient
    def clamp(value: Any, real: Any) -> tuple[Any, Callable]:
        def gradient(*args: Any, upstream: Any = None) -> tuple[Any, Any]:
            passed = _upstream(args, upstream)
            zeros = ops.zeros_like(passed)
            least = ops.convert_to_tensor(lower)
            above = real > least if rectified else real >= least
            inside = ops.logical_and(above, real <= ops.convert_to_tensor(upper))
            return zeros, ops.where(inside, passed, zeros)

        return ops.clip(value, low, high), gradient

    return clamp(ops.stop_gradient(exact), smooth)


def reach_of_sums(
    rows: np.ndarray, bias: np.ndarray, span: tuple[int, int], factors: np.ndarray
) -> Reach:
    """How far weighted sums of integers can go, after they are rescaled.

    Args:
        rows: weights, int64 ``(channels, products)``.
        bias: int64 ``(channels,)``.
        span: the smallest and largest centred integer among the operands; padding adds zeros.
        factors: positive float64 ``(channels,)``, from sums to steps of the output.
    """
    low, high = min(span[0], 0), max(span[1], 0)
    upward, downward = np.maximum(rows, 0).sum(axis=1), np.minimum(rows, 0).sum(axis=1)
    return (
        (upward * low + downward * high + bias) * factors,
        (upward * high + downward * low + bias) * factors,
    )


def to_centred(reals: Any, grid: Tensor, divisor: Any = None) -> Any:
    """Floats to centred integers of a grid: ``clip(rint(x * (1 / scale)))``, straight-through.

    Args:
        reals: floats.
        grid: a tensor with one scale and zero point.
        divisor: for kernels that divide by the scale and take ties away from zero: the scale, as a
            variable that no compiler replaces by its reciprocal.
    """
    low, high = INTEGER_RANGES[grid.dtype]
    if divisor is not None:
        steps = reals / ops.convert_to_tensor(divisor)
        exact = half_away(steps)
    else:
        steps = reals * float(np.float32(1.0) / grid.scale)
        exact = ops.round(steps)
    return straight_through(exact, steps, low - grid.zero_point, high - grid.zero_point, False)


def half_away(values: Any) -> Any:
    """Floats to whole numbers, ties away from zero."""
    size = ops.absolute(values)
    whole = ops.floor(size)
    # compared with a sum of whole numbers and halves, which is exact where a half is one
    return ops.sign(values) * (whole + ops.cast(size >= whole + 0.5, whole.dtype))


def with_gradient(exact: Any, smooth: Any) -> Any:
    """The value of ``exact`` with the gradient of ``smooth``."""
    return _with_gradient(ops.stop_gradient(exact), smooth)


@ops.custom_gradient
def _with_gradient(exact: Any, smooth: Any) -> tuple[Any, Callable]:
    del smooth

    def gradient(*args: Any, upstream: Any = None) -> tuple[Any, Any]:
        passed = _upstream(args, upstream)
        return ops.zeros_like(passed), passed

    return exact + 0.0, gradient


def _upstream(args: tuple[Any, ...], upstream: Any) -> Any:
    """The gradient that comes from above: PyTorch gives it by name, the others alone."""
    return args[0] if upstream is None else upstream


def rescaler(rounding: Rescale, factors: np.ndarray) -> Callable[[Any], Any]:
    """The rescalings of `rounding`, on tensors of whole numbers below 2**31.

    Args:
        rounding: `scale_away`, `scale_upward`, `scale_in_eights`, `scale_on_avx2`, `scale_and_cut`,
            `scale_once`, or `scale_wide`, whose sums may be larger.
        factors: real factors, ``(1,)`` or ``(channels,)``.

    Returns:
        From an accumulator, channels last, to whole steps of the output, int64; to be called in
        `wide_numbers`.
    """
    if rounding is scale_once:

        def rescale(accumulator: Any) -> Any:
            products = ops.cast(accumulator, "float64") * ops.convert_to_tensor(factors, "float64")
            return ops.cast(half_away(products), "int64")

        return rescale
    if rounding is scale_wide:
        multiplier, shift = wide_multipliers(factors)

        def rescale_wide(accumulator: Any) -> Any:
            product = ops.cast(accumulator, "int64") * _int64(multiplier)
            return shift_right(product + _int64(np.int64(1) << (shift - 1)), shift)

        return rescale_wide
    return multiplier_rescaler(rounding, [fixed_point(float(factor)) for factor in factors])


def multiplier_rescaler(
    rounding: Rescale, multipliers: Sequence[tuple[int, int]]
) -> Callable[[Any], Any]:
    """`rescaler` for factors given as pairs (multiplier, shift) of `fixed_point`."""
    pairs = np.array(multipliers, np.int64).reshape(-1, 2)
    multiplier, left, right = pairs[:, 0], np.maximum(pairs[:, 1], 0), np.maximum(-pairs[:, 1], 0)
    count = len(pairs)
    upward = np.full(count, rounding in (scale_upward, scale_on_avx2, scale_and_cut))
    nudge = 0 if rounding is scale_on_avx2 else 1 << 30
    if rounding is scale_in_eights:
        upward = np.arange(count) < count // 8 * 8
    mask = (np.int64(1) << right) - 1

    def rescale(accumulator: Any) -> Any:
        wide = ops.cast(accumulator, "int64")
        product = ops.left_shift(wide, _like(left, wide)) * _int64(multiplier)
        up = ops.convert_to_tensor(upward)
        high_up = shift_right(product + nudge, 31)
        high_away = ops.where(product >= 0, high_up, -shift_right(-(product + (1 - (1 << 30))), 31))
        high = ops.where(up, high_up, high_away)
        if rounding is scale_and_cut:
            return shift_right(high, right)
        remainder = ops.bitwise_and(high, _like(mask, high))
        negative = ops.cast(ops.logical_and(ops.logical_not(up), high < 0), "int64")
        threshold = _int64(mask >> 1) + negative
        return shift_right(high, right) + ops.cast(remainder > threshold, "int64")

    return rescale


def in_steps(rescale: Callable[[Any], Any], accumulator: Any) -> Any:
    """What a `rescaler` makes of an accumulator, float32."""
    with wide_numbers():
        return ops.cast(rescale(accumulator), "float32")


def shift_right(values: Any, amount: np.ndarray | int) -> Any:
    """Arithmetic shift: floor division by ``2**amount``."""
    return ops.right_shift(values, _like(amount, values))


def _int64(values: np.ndarray | int) -> Any:
    return ops.convert_to_tensor(np.asarray(values, np.int64), "int64")


def _like(amount: np.ndarray | int, values: Any) -> Any:
    """An amount in the type of other integers and repeated to their shape."""
    kind = ops.dtype(values)
    return ops.broadcast_to(
        ops.convert_to_tensor(np.asarray(amount, kind), kind), ops.shape(values)
    )
