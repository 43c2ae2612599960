"""Rounding and clamping in TensorFlow: exact values, straight-through gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tflite_export.ir.graph import INTEGER_RANGES, Tensor
from tflite_export.ir.requantization import (
    Rescale,
    fixed_point,
    scale_and_cut,
    scale_in_eights,
    scale_on_avx2,
    scale_once,
    scale_upward,
)

Reach = tuple[np.ndarray, np.ndarray]
"""The least and the greatest real number that each channel can come to, float64 ``(channels,)``."""

_SURELY_ROUNDED = 0.499


def straight_through(
    exact: tf.Tensor,
    smooth: tf.Tensor,
    low: float,
    high: float,
    rectified: bool,
    reach: Reach | None = None,
) -> tf.Tensor:
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

    @tf.custom_gradient
    def clamp(value: tf.Tensor, real: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        def gradient(upstream: tf.Tensor) -> tuple[None, tf.Tensor]:
            above = real > lower if rectified else real >= lower
            return None, tf.where(above & (real <= upper), upstream, tf.zeros_like(upstream))

        return tf.clip_by_value(value, low, high), gradient

    return clamp(tf.stop_gradient(exact), smooth)


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


def to_centred(reals: tf.Tensor, grid: Tensor, divides: bool = False) -> tf.Tensor:
    """Floats to centred integers of a grid: ``clip(rint(x * (1 / scale)))``, straight-through.

    Args:
        reals: floats.
        grid: a tensor with one scale and zero point.
        divides: as in `KernelSet`: divide by the scale, ties away from zero.
    """
    low, high = INTEGER_RANGES[grid.dtype]
    if divides:
        steps = reals / grid.scale
        wide = tf.cast(steps, tf.float64)
        exact = tf.cast(tf.sign(wide) * tf.floor(tf.abs(wide) + 0.5), tf.float32)
    else:
        steps = reals * (np.float32(1.0) / grid.scale)
        exact = tf.round(steps)
    return straight_through(exact, steps, low - grid.zero_point, high - grid.zero_point, False)


@tf.custom_gradient
def with_gradient(exact: tf.Tensor, smooth: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """The value of ``exact`` with the gradient of ``smooth``."""
    del smooth
    return tf.identity(exact), lambda upstream: (None, upstream)


def rescaler(rounding: Rescale, factors: np.ndarray) -> Callable[[tf.Tensor], tf.Tensor]:
    """The rescalings of `rounding`, on int64 tensors.

    Args:
        rounding: `scale_away`, `scale_upward`, `scale_in_eights`, `scale_on_avx2`, `scale_and_cut`
            or `scale_once`.
        factors: real factors, ``(1,)`` or ``(channels,)``.

    Returns:
        From an accumulator, channels last, to whole steps of the output.
    """
    if rounding is scale_once:

        def rescale(accumulator: tf.Tensor) -> tf.Tensor:
            products = tf.cast(accumulator, tf.float64) * factors
            return tf.cast(tf.sign(products) * tf.floor(tf.abs(products) + 0.5), tf.int64)

        return rescale
    return multiplier_rescaler(rounding, [fixed_point(float(factor)) for factor in factors])


def multiplier_rescaler(
    rounding: Rescale, multipliers: Sequence[tuple[int, int]]
) -> Callable[[tf.Tensor], tf.Tensor]:
    """`rescaler` for factors given as pairs (multiplier, shift) of `fixed_point`."""
    pairs = np.array(multipliers, np.int64).reshape(-1, 2)
    multiplier, left, right = pairs[:, 0], np.maximum(pairs[:, 1], 0), np.maximum(-pairs[:, 1], 0)
    count = len(pairs)
    upward = np.full(count, rounding in (scale_upward, scale_on_avx2, scale_and_cut))
    nudge = 0 if rounding is scale_on_avx2 else 1 << 30
    if rounding is scale_in_eights:
        upward = np.arange(count) < count // 8 * 8
    mask = (np.int64(1) << right) - 1

    def rescale(accumulator: tf.Tensor) -> tf.Tensor:
        product = (
            tf.bitwise.left_shift(accumulator, tf.broadcast_to(left, tf.shape(accumulator)))
            * multiplier
        )
        high_up = shift_right(product + nudge, 31)
        high_away = tf.where(product >= 0, high_up, -shift_right(-(product + (1 - (1 << 30))), 31))
        high = tf.where(upward, high_up, high_away)
        if rounding is scale_and_cut:
            return shift_right(high, right)
        remainder = tf.bitwise.bitwise_and(high, tf.broadcast_to(mask, tf.shape(high)))
        threshold = (mask >> 1) + tf.where(upward, tf.zeros_like(high), tf.cast(high < 0, tf.int64))
        return shift_right(high, right) + tf.cast(remainder > threshold, tf.int64)

    return rescale


def shift_right(values: tf.Tensor, amount: np.ndarray | int) -> tf.Tensor:
    """Arithmetic shift: floor division by ``2**amount``."""
    return tf.bitwise.right_shift(
        values, tf.broadcast_to(tf.constant(amount, values.dtype), tf.shape(values))
    )
