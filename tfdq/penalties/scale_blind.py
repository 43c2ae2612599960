"""A kernel whose gradient leaves the length of each output channel alone, as BatchNorm does."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


@tf.custom_gradient
def _scale_blind(kernel: tf.Tensor, axes: tf.Tensor, rate: tf.Tensor) -> tuple[tf.Tensor, Any]:
    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, None, None]:
        # Divided by the largest entry first: the squares of 1e-20 or 1e20 are not float32.
        wide = tf.cast(kernel, tf.float32)
        peaks = tf.reduce_max(tf.abs(wide), axes, keepdims=True)
        scaled = tf.math.divide_no_nan(wide, peaks)
        lengths = tf.reduce_sum(tf.square(scaled), axes, keepdims=True)
        slopes = tf.cast(upstream, tf.float32)
        radial = tf.reduce_sum(scaled * slopes, axes, keepdims=True)
        radial *= tf.math.divide_no_nan(scaled, lengths)
        return tf.cast(rate * (slopes - radial), upstream.dtype), None, None

    return tf.identity(kernel), gradient


def scale_blind(kernel: tf.Tensor, depthwise: bool = False, rate: float = 1.0) -> tf.Tensor:
    r"""Return a kernel as it is, with a gradient that does not change any channel's length.

    .. math:: \frac{w_c}{\lVert w_c \rVert} \cdot \mathrm{stop\_gradient}(\lVert w_c \rVert)

    for each output channel `c`. BatchNorm divides by the standard deviation of what the kernel
    computes, so it undoes any length; a penalty of the folded kernel that shortened the kernel
    would only make the moving statistics lag behind it.

    Args:
        kernel: float tensor; a convolution's `(k_h, k_w, c_in, c_out)`, a dense layer's
            `(c_in, c_out)`, or a depthwise `(k_h, k_w, c_in, multiplier)`.
        depthwise: each pair of an input channel and a multiplier is an output channel.
        rate: factor of the gradient, >= 0.

    Returns:
        The same values. Its gradient is ``rate`` times the one handed in, less the part along each
        channel. The direction of a channel of zeros is not defined; nothing is taken from it.
    """
    axes = range(kernel.shape.rank - (2 if depthwise else 1))
    return _scale_blind(kernel, tf.constant(list(axes)), tf.constant(rate))
