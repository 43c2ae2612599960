"""MUL in TensorFlow, with straight-through gradients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tflite_export.ir.requantization import requantization_scale, scale_away
from tflite_export.ops.twin_rounding import rescaler
from tflite_export.ops.twin_site import Kernel, Site, both_operands, finish


def build(site: Site) -> Kernel:
    """The operator at a site."""
    left, right = site.inputs
    scale = requantization_scale(left.scale, right.scale.reshape(1), site.output.scale)
    fixed = None if site.xnnpack else rescaler(scale_away, scale.astype(np.float64))
    every = both_operands(site)

    def kernel(operands: Sequence[tf.Tensor]) -> tf.Tensor:
        first, second = every(operands)
        product = first * second
        steps = product * scale
        exact = tf.round(steps) if fixed is None else fixed(tf.cast(product, tf.int64))
        return finish(site, tf.cast(exact, tf.float32), steps)

    return kernel
