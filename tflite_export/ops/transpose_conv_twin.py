"""TRANSPOSE_CONV in keras.ops, with straight-through gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from keras import ops

from tflite_export.ops.transpose_conv import TransposedConvolution
from tflite_export.ops.twin_site import Kernel, Site
from tflite_export.ops.twin_weighted import weighted


def build(site: Site) -> Kernel:
    """The operator at a site."""
    options = site.operator.options
    assert isinstance(options, TransposedConvolution)
    _, weights, source, *bias = site.inputs
    strides = (options.stride_h, options.stride_w)
    starts, pads = [], []
    for size, length, window, stride in zip(
        source.shape[1:3], site.output.shape[1:3], weights.shape[1:3], strides, strict=True
    ):
        whole = (size - 1) * stride + max(window, stride)
        before = 0
        if options.padding == "SAME":
            before = max((size - 1) * stride + window - length, 0) // 2
        starts.append(slice(before, before + length))
        pads.append((0, max(before + length - whole, 0)))
    missing = any(map(any, pads))

    def multiply(centred: Any, kernel: Any) -> Any:
        # without padding, which the backends cut off differently
        whole = ops.conv_transpose(centred, kernel, strides, "valid", None, "channels_last")
        whole = ops.pad(whole, [(0, 0), *pads, (0, 0)]) if missing else whole
        return whole[:, starts[0], starts[1]]

    def layout(values: np.ndarray) -> np.ndarray:
        return np.transpose(values, (1, 2, 0, 3))

    spans = [site.spans[i] for i in (2, 1, *range(3, 3 + len(bias)))]
    site = replace(site, inputs=[source, weights, *bias], spans=spans)
    return weighted(site, multiply, layout, 0, site.kernels.depthwise)
