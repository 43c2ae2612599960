"""RESIZE_BILINEAR in TensorFlow, with straight-through gradients."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tflite_export.ops.resize_bilinear import mixes
from tflite_export.ops.spec import Step
from tflite_export.ops.twin_site import Kernel, Site, finish


def build(site: Site) -> Kernel:
    """The operator at a site."""
    step = Step(site.operator, site.inputs, site.output, site.kernels, site.xnnpack)
    axes = tuple(enumerate(mixes(step), start=1))
    whole = axes[0][1].unit * axes[1][1].unit
    zero = site.output.zero_point

    def mixed(values: tf.Tensor) -> tf.Tensor:
        """Sums in multiples of ``1 / whole``; of whole numbers, below 2**31."""
        for axis, mix in axes:
            shares = tf.constant(mix.share.reshape(-1, *(1,) * (3 - axis)), values.dtype)
            first, second = (tf.gather(values, at, axis=axis) for at in (mix.first, mix.second))
            values = first * (mix.unit - shares) + second * shares
        return values

    def kernel(operands: Sequence[tf.Tensor]) -> tf.Tensor:
        sums = mixed(tf.cast(operands[0], tf.int32) + zero)
        if site.xnnpack:
            exact = (sums + whole // 2) // whole
        else:
            exact = tf.sign(sums) * ((tf.abs(sums) + whole // 2) // whole)
        return finish(site, tf.cast(exact - zero, tf.float32), mixed(operands[0]) / whole)

    return kernel
