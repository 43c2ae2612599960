"""CONV_2D in TensorFlow, with straight-through gradients."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tflite_export.ir.graph import Convolution
from tflite_export.ops.twin_site import Kernel, Site
from tflite_export.ops.twin_weighted import weighted


def build(site: Site) -> Kernel:
    """The operator at a site."""
    options = site.operator.options
    assert isinstance(options, Convolution)
    strides, dilations = (
        (options.stride_h, options.stride_w),
        (options.dilation_h, options.dilation_w),
    )

    def multiply(centred: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        return tf.nn.conv2d(centred, weights, strides, options.padding, dilations=dilations)

    def layout(weights: np.ndarray) -> np.ndarray:
        return np.transpose(weights, (1, 2, 3, 0))

    return weighted(site, multiply, layout, 0, site.kernels.convolution)
