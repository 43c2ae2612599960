"""TRANSPOSE_CONV in TensorFlow, with straight-through gradients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import tensorflow as tf

from tflite_export.ops.transpose_conv import TransposedConvolution
from tflite_export.ops.twin_site import Kernel, Site
from tflite_export.ops.twin_weighted import weighted


def build(site: Site) -> Kernel:
    """The operator at a site."""
    options = site.operator.options
    assert isinstance(options, TransposedConvolution)
    _, weights, source, *bias = site.inputs
    strides = (options.stride_h, options.stride_w)
    shape = site.output.shape[1:]

    def multiply(centred: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        size = [tf.shape(centred)[0], *shape]
        return tf.nn.conv2d_transpose(centred, kernel, size, strides, options.padding)

    def layout(values: np.ndarray) -> np.ndarray:
        return np.transpose(values, (1, 2, 0, 3))

    spans = [site.spans[i] for i in (2, 1, *range(3, 3 + len(bias)))]
    site = replace(site, inputs=[source, weights, *bias], spans=spans)
    return weighted(site, multiply, layout, 0, site.kernels.depthwise)
