"""CONV_2D in keras.ops, with straight-through gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from keras import ops

from tflite_export.ir.graph import Convolution, Tensor
from tflite_export.ir.requantization import scale_away
from tflite_export.ops.conv_2d import groups_of
from tflite_export.ops.twin_site import Kernel, Site
from tflite_export.ops.twin_weighted import weighted
from tflite_export.ops.weighted import rounding


def build(site: Site) -> Kernel:
    """The operator at a site."""
    options = site.operator.options
    assert isinstance(options, Convolution)
    strides, dilations = (
        (options.stride_h, options.stride_w),
        (options.dilation_h, options.dilation_w),
    )

    def multiply(centred: Any, weights: Any) -> Any:
        return ops.conv(
            centred, weights, strides, options.padding.lower(), "channels_last", dilations
        )

    def layout(weights: np.ndarray) -> np.ndarray:
        return np.transpose(weights, (1, 2, 3, 0))

    source, weights = site.inputs[:2]
    groups = groups_of(source, weights)
    if groups > 1:
        # Not every backend has the gradient of grouped convolutions on every device.
        site = replace(site, inputs=[source, _whole(weights, groups), *site.inputs[2:]])
    narrow = site.kernels.convolution if groups == 1 else scale_away
    return weighted(site, multiply, layout, 0, rounding(site.output, narrow))


def _whole(weights: Tensor, groups: int) -> Tensor:
    """The weights of a convolution of all channels that computes what the grouped one does."""
    data = np.asarray(weights.data)
    outputs, height, width, inputs = data.shape
    whole = np.zeros((groups, outputs // groups, height, width, groups, inputs), data.dtype)
    for group, kernel in enumerate(np.split(data, groups)):
        whole[group, :, :, :, group] = kernel
    shape = (outputs, height, width, groups * inputs)
    return replace(weights, shape=shape, data=whole.reshape(shape))
