"""Vectors over their lengths in keras.ops, on int64 that holds 32-bit numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

from tflite_export.ops import gemmlowp
from tflite_export.ops.l2_normalization import UNITS
from tflite_export.ops.twin_gemmlowp import product
from tflite_export.ops.twin_wide import wide_numbers


def whole_units(values: Any) -> Any:
    """Return vectors of the last axis over their length, in units of 1/128, not clamped.

    Args:
        values: float32, whole numbers counted from the zero point.

    Returns:
        float32.
    """
    with wide_numbers():
        entries = _int64(values)
        found = units(entries, ops.sum(entries * entries, axis=-1, keepdims=True))
        return ops.cast(found, "float32")


def smooth_units(values: Any) -> Any:
    """Return what `whole_units` rounds, with a finite gradient at a vector of zeros, too.

    Args:
        values: float32, whole numbers counted from the zero point: none but zeros is shorter
            than 1.
    """
    squares = ops.sum(values * values, axis=-1, keepdims=True)
    return values * (float(UNITS) * ops.rsqrt(ops.maximum(squares, 1.0)))


def units(centred: Any, sums: Any) -> Any:
    """Return entries over the length of their vector, in units of 1/128, not clamped.

    To be called in `wide_numbers`.

    Args:
        centred: int64 entries, counted from the zero point.
        sums: int64, of the squares of a vector, of a shape that repeats along it.
    """
    multiplier, shift = _inverse_root(sums)
    shift = shift + 7
    left = ops.where(shift > 0, shift, ops.zeros_like(shift))
    right = ops.where(shift > 0, ops.zeros_like(shift), -shift)
    high = product(centred * _power(left), multiplier)
    mask = _power(right) - 1
    beyond = ops.bitwise_and(high, mask) > ops.right_shift(mask, 1) + _int64(high < 0)
    return ops.right_shift(high, ops.broadcast_to(right, ops.shape(high))) + _int64(beyond)


def _int64(values: Any) -> Any:
    return ops.cast(values, "int64")


def _power(exponents: Any) -> Any:
    return ops.left_shift(ops.ones_like(exponents), exponents)


def _inverse_root(sums: Any) -> tuple[Any, Any]:
    """Return ``1 / sqrt(n)``, as `gemmlowp.inverse_root`."""
    one = sums <= 1
    number = ops.where(one, ops.full_like(sums, 2), sums)
    large = number >= 1 << 29
    number = ops.where(large, number // 4, number)
    powers = ops.convert_to_tensor(2 ** np.arange(31, dtype=np.int64), "int64")
    bits = ops.sum(_int64(ops.expand_dims(number, -1) >= powers), axis=-1)
    pairs = (31 - bits) // 2 - 1
    number = number * _power(2 * pairs) // 2
    half = (number + 1) // 2
    x = ops.full_like(number, gemmlowp.ONE_OF_THREE_BITS)
    for _ in range(5):
        cube = product(product(x, x), x) * 64
        halves = product(x, ops.full_like(x, gemmlowp.ONE_OF_THREE_BITS * 3 // 2))
        x = (halves - product(half, cube)) * 8
    x = product(x, ops.full_like(x, gemmlowp.HALF_ROOT_OF_TWO))
    shift = pairs - 11 - _int64(large)
    x = x * _power(ops.where(shift > 0, shift, ops.zeros_like(shift)))
    shift = ops.where(shift > 0, ops.zeros_like(shift), shift)
    most = ops.full_like(x, 2**31 - 1)
    return ops.where(one, most, x), ops.where(one, ops.zeros_like(shift), shift)
