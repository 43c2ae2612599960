"""MAX_POOL_2D in TensorFlow, with straight-through gradients."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tflite_export.ir.graph import Pooling
from tflite_export.ops.twin_site import Kernel, Site, clamp_range


def build(site: Site) -> Kernel:
    """The operator at a site."""
    options = site.operator.options
    assert isinstance(options, Pooling)
    low, high = clamp_range(site.operator, site.output)
    window, strides = (options.filter_h, options.filter_w), (options.stride_h, options.stride_w)

    def kernel(operands: Sequence[tf.Tensor]) -> tf.Tensor:
        pooled = tf.nn.max_pool2d(operands[0], window, strides, options.padding)
        return pooled if options.activation == "NONE" else tf.clip_by_value(pooled, low, high)

    return kernel
