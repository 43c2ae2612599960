"""AVERAGE_POOL_2D in keras.ops, with straight-through gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from tflite_export.ir.graph import Pooling
from tflite_export.ops.twin_site import Kernel, Site, finish
from tflite_export.ops.windows import pool_counts, same_padding


def build(site: Site) -> Kernel:
    """The operator at a site."""
    options = site.operator.options
    assert isinstance(options, Pooling)
    size = site.inputs[0].shape[1:3]
    counts = site.constant(pool_counts(size, options).astype(np.float32))
    window, strides = (options.filter_h, options.filter_w), (options.stride_h, options.stride_w)
    zero = float(site.inputs[0].zero_point)
    whole = float(options.filter_h * options.filter_w)
    pads = [(0, 0)] * 4
    if options.padding == "SAME":
        pads[1:3] = [same_padding(size[i], window[i], strides[i]) for i in (0, 1)]
    padded = any(map(any, pads))

    def kernel(operands: Sequence[Any]) -> Any:
        stored = operands[0] + zero
        # padded here, since the backends differ on what they pad an average with
        stored = ops.pad(stored, pads) if padded else stored
        sums = ops.average_pool(stored, window, strides, "valid", "channels_last") * whole
        pixels = ops.convert_to_tensor(counts)
        mean = sums / pixels
        integers = ops.cast(ops.round(ops.stop_gradient(sums)), "int32")
        count = ops.cast(pixels, "int32")
        rounded = (2 * ops.absolute(integers) + count) // (2 * count)
        exact = ops.cast(ops.sign(integers) * rounded, "float32")
        return finish(site, exact - zero, mean - zero)

    return kernel
