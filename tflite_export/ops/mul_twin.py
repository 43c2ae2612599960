"""MUL in TensorFlow, with straight-through gradients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tflite_export.ir.requantization import requantization_scale, scale_away
from tflite_export.ops.twin_rounding import rescaler
from tflite_export.ops.twin_site import Kernel, Site, finish


def build(site: Site) -> Kernel:
    """The operator at a site."""
    source, constant = site.inputs
    values = np.asarray(constant.data).astype(np.float32) - np.float32(constant.zero_point)
    factors = site.constant(values)
    scale = requantization_scale(source.scale, constant.scale.reshape(1), site.output.scale)
    fixed = None if site.xnnpack else rescaler(scale_away, scale.astype(np.float64))

    def kernel(operands: Sequence[tf.Tensor]) -> tf.Tensor:
        product = operands[0] * factors
        steps = product * scale
        exact = tf.round(steps) if fixed is None else fixed(tf.cast(product, tf.int64))
        return finish(site, tf.cast(exact, tf.float32), steps)

    return kernel
