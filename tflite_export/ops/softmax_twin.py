"""SOFTMAX in TensorFlow, with straight-through gradients."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tflite_export.ir.graph import Softmax
from tflite_export.ops.softmax import softmax_table
from tflite_export.ops.twin_rounding import with_gradient
from tflite_export.ops.twin_site import Kernel, Site, clamp_range


def build(site: Site) -> Kernel:
    """The operator at a site."""
    options = site.operator.options
    assert isinstance(options, Softmax)
    scale, step = site.inputs[0].scale, site.output.scale
    table = site.constant(softmax_table(scale, options.beta))
    factor = float(scale) * options.beta
    last = site.inputs[0].shape[-1]

    def kernel(operands: Sequence[tf.Tensor]) -> tf.Tensor:
        logits = operands[0]
        distance = tf.reduce_max(logits, axis=-1, keepdims=True) - logits
        weights = tf.gather(table, tf.cast(distance, tf.int32))
        # the kernels add one class after the other; any other order may round differently
        total = tf.cumsum(weights, axis=-1)[..., last - 1 :]
        scaled = weights * (1.0 / (total * step))
        exact = tf.floor(tf.cast(scaled, tf.float64) + 0.5)
        smooth = tf.nn.softmax(factor * logits) / step
        return _finish(site, tf.cast(exact, tf.float32), smooth)

    return kernel


def _finish(site: Site, exact: tf.Tensor, smooth: tf.Tensor) -> tf.Tensor:
    """Clamp to 255/256, which would stop the gradient of a sure prediction; let it pass instead."""
    low, high = clamp_range(site.operator, site.output)
    return with_gradient(tf.clip_by_value(exact, low, high), smooth)
