"""MAX_POOL_2D in keras.ops, with straight-through gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras import ops

from tflite_export.ir.graph import Pooling
from tflite_export.ops.twin_site import Kernel, Site, clamp_range


def build(site: Site) -> Kernel:
    """The operator at a site."""
    options = site.operator.options
    assert isinstance(options, Pooling)
    low, high = clamp_range(site.operator, site.output)
    window, strides = (options.filter_h, options.filter_w), (options.stride_h, options.stride_w)
    padding = options.padding.lower()

    def kernel(operands: Sequence[Any]) -> Any:
        pooled = ops.max_pool(operands[0], window, strides, padding, "channels_last")
        return pooled if options.activation == "NONE" else ops.clip(pooled, low, high)

    return kernel
