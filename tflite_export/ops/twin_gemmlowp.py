"""Fixed point of the reference kernels in keras.ops, on int64 that holds 32-bit numbers.

To be called in `wide_numbers`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

from tflite_export.ops import gemmlowp
from tflite_export.ops.twin_rounding import shift_right


def product(a: Any, b: Any) -> Any:
    """The high half of a doubled product, rounded half away from zero."""
    whole = a * b
    negative = -shift_right(-(whole + (1 - (1 << 30))), 31)
    rounded = ops.where(whole >= 0, shift_right(whole + (1 << 30), 31), negative)
    return _saturated(rounded)


def _inverse(a: Any) -> Any:
    """``1 / (1 + a)`` for ``a`` in [0, 1], all with no integer bits, by Newton's division."""
    half_denominator = shift_right(a + 2**31, 1)
    start, slope = gemmlowp.DIVISION_START
    x = start + product(half_denominator, slope)
    for _ in range(3):
        step = product(x, (1 << 29) - product(half_denominator, x))
        x = x + _saturated(step * 4)
    return _saturated(x * 2)


def _saturated(values: Any) -> Any:
    """Clip to 32 bits; minima and maxima of Keras would leave 32 bits of them on PyTorch."""
    least, most = (ops.full_like(values, end) for end in (-(2**31), 2**31 - 1))
    return ops.where(values < least, least, ops.where(values > most, most, values))


def softmax(exponentials: Any, summands: Any) -> Any:
    """256 times the shares that exponentials have in their sum, rounded.

    Args:
        exponentials: with no integer bits, int64, classes last.
        summands: the same with twelve integer bits.
    """
    total = ops.sum(summands, axis=-1, keepdims=True)
    powers = ops.convert_to_tensor(2 ** np.arange(32, dtype=np.int64), "int64")
    bits = ops.sum(ops.cast(ops.expand_dims(total, -1) >= powers, "int64"), axis=-1)
    normal = ops.left_shift(total, 32 - bits) - 2**31
    shares = product(_inverse(normal), exponentials)
    right = ops.broadcast_to(bits + 3, ops.shape(shares))
    half = ops.left_shift(ops.ones_like(right), right - 1)
    return ops.right_shift(shares + half, right)
