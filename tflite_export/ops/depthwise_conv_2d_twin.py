"""DEPTHWISE_CONV_2D in keras.ops, with straight-through gradients."""

from __future__ import annotations

from typing import Any

from keras import ops

from tflite_export.ir.graph import Convolution
from tflite_export.ops.twin_site import Kernel, Site
from tflite_export.ops.twin_weighted import weighted
from tflite_export.ops.weighted import rounding
from tflite_export.ops.windows import same_padding


def build(site: Site) -> Kernel:
    """The operator at a site."""
    options = site.operator.options
    assert isinstance(options, Convolution)
    height, width = site.inputs[1].shape[1:3]
    shape = (height, width, -1, options.depth_multiplier)
    dilations = (options.dilation_h, options.dilation_w)
    size = site.inputs[0].shape[1:3]

    if (height, width) == (1, 1) and options.depth_multiplier == 1:

        def multiply(centred: Any, weights: Any) -> Any:
            return centred[:, :: options.stride_h, :: options.stride_w] * weights[0, 0]

    elif (height, width) == size and options.padding == "VALID" and options.depth_multiplier == 1:

        def multiply(centred: Any, weights: Any) -> Any:
            return ops.sum(centred * weights, axis=(1, 2), keepdims=True)

    elif options.stride_h == options.stride_w:

        def multiply(centred: Any, weights: Any) -> Any:
            stride, kernel = options.stride_h, ops.reshape(weights, shape)
            return ops.depthwise_conv(
                centred, kernel, stride, options.padding.lower(), "channels_last", dilations
            )

    else:
        # TensorFlow has one stride for both dimensions: take every window, keep those wanted
        strides = (options.stride_h, options.stride_w)
        pads = [
            same_padding(size[i], (height, width)[i], strides[i], dilations[i])
            if options.padding == "SAME"
            else (0, 0)
            for i in (0, 1)
        ]

        def multiply(centred: Any, weights: Any) -> Any:
            padded = ops.pad(centred, [(0, 0), *pads, (0, 0)])
            kernel = ops.reshape(weights, shape)
            every = ops.depthwise_conv(padded, kernel, 1, "valid", "channels_last", dilations)
            return every[:, :: strides[0], :: strides[1]]

    fixed = rounding(site.output, site.kernels.depthwise)
    return weighted(site, multiply, lambda weights: weights[0], 3, fixed)
