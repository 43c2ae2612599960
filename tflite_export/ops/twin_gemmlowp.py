"""The reference kernels' fixed-point softmax in TensorFlow, on int64 that holds 32-bit numbers."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tflite_export.ops import gemmlowp
from tflite_export.ops.twin_rounding import shift_right


def _product(a: tf.Tensor, b: tf.Tensor | int) -> tf.Tensor:
    """The high half of a doubled product, rounded half away from zero."""
    product = a * b
    negative = -shift_right(-(product + (1 - (1 << 30))), 31)
    rounded = tf.where(product >= 0, shift_right(product + (1 << 30), 31), negative)
    return tf.minimum(rounded, np.int64(2**31 - 1))


def _inverse(a: tf.Tensor) -> tf.Tensor:
    """``1 / (1 + a)`` for ``a`` in [0, 1], all with no integer bits, by Newton's division."""
    half_denominator = (a + 2**31) // 2
    start, slope = gemmlowp.DIVISION_START
    x = start + _product(half_denominator, slope)
    for _ in range(3):
        step = _product(x, (1 << 29) - _product(half_denominator, x))
        x = x + tf.clip_by_value(step * 4, np.int64(-(2**31)), np.int64(2**31 - 1))
    return tf.clip_by_value(x * 2, np.int64(-(2**31)), np.int64(2**31 - 1))


def softmax(exponentials: tf.Tensor, summands: tf.Tensor) -> tf.Tensor:
    """256 times the shares that exponentials have in their sum, rounded.

    Args:
        exponentials: with no integer bits, int64, classes last.
        summands: the same with twelve integer bits.
    """
    total = tf.reduce_sum(summands, axis=-1, keepdims=True)
    powers = tf.constant(2 ** np.arange(32), tf.int64)
    bits = tf.reduce_sum(tf.cast(total[..., None] >= powers, tf.int64), axis=-1)
    normal = tf.bitwise.left_shift(total, 32 - bits) - 2**31
    product = _product(_inverse(normal), exponentials)
    right = tf.broadcast_to(bits + 3, tf.shape(product))
    half = tf.bitwise.left_shift(tf.ones_like(right), right - 1)
    return tf.bitwise.right_shift(product + half, right)
