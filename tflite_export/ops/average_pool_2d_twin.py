"""AVERAGE_POOL_2D in TensorFlow, with straight-through gradients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tflite_export.ir.graph import Pooling
from tflite_export.ops.twin_site import Kernel, Site, finish
from tflite_export.ops.windows import pool_counts


def build(site: Site) -> Kernel:
    """The operator at a site."""
    options = site.operator.options
    assert isinstance(options, Pooling)
    counts = site.constant(pool_counts(site.inputs[0].shape[1:3], options).astype(np.float32))
    window, strides = (options.filter_h, options.filter_w), (options.stride_h, options.stride_w)
    zero = float(site.inputs[0].zero_point)

    def kernel(operands: Sequence[tf.Tensor]) -> tf.Tensor:
        mean = tf.nn.avg_pool2d(operands[0] + zero, window, strides, options.padding)
        sums = tf.round(mean * counts)
        magnitude = tf.floor((2.0 * tf.abs(sums) + counts) / (2.0 * counts))
        return finish(site, tf.sign(sums) * magnitude - zero, mean - zero)

    return kernel
