"""SOFTMAX in TensorFlow, with straight-through gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

from tflite_export.ir.graph import Softmax
from tflite_export.ops.gemmlowp import for_sum
from tflite_export.ops.softmax import fixed_point_table, softmax_table
from tflite_export.ops.spec import Step
from tflite_export.ops.twin_gemmlowp import softmax
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

    fixed = _in_fixed_point(site) if site.kernels.divides else None

    def kernel(operands: Sequence[tf.Tensor]) -> tf.Tensor:
        logits = operands[0]
        smooth = tf.nn.softmax(factor * logits) / step
        distance = tf.cast(tf.reduce_max(logits, axis=-1, keepdims=True) - logits, tf.int32)
        if fixed is not None:
            return _finish(site, tf.cast(fixed(distance), tf.float32), smooth)
        weights = tf.gather(table, distance)
        # the kernels add one class after the other; any other order may round differently
        total = tf.cumsum(weights, axis=-1)[..., last - 1 :]
        scaled = weights * (1.0 / (total * step))
        exact = tf.floor(tf.cast(scaled, tf.float64) + 0.5)
        return _finish(site, tf.cast(exact, tf.float32), smooth)

    return kernel


def _in_fixed_point(site: Site) -> Callable[[tf.Tensor], tf.Tensor]:
    """From the distances to the largest logit to whole steps, as reference kernels compute."""
    step = Step(site.operator, site.inputs, site.output, site.kernels, site.xnnpack)
    exponentials = fixed_point_table(step)
    tables = [site.constant(values) for values in (exponentials, for_sum(exponentials))]
    return lambda distance: softmax(*(tf.gather(table, distance) for table in tables))


def _finish(site: Site, exact: tf.Tensor, smooth: tf.Tensor) -> tf.Tensor:
    """Clamp to 255/256, which would stop the gradient of a sure prediction; let it pass instead."""
    low, high = clamp_range(site.operator, site.output)
    return with_gradient(tf.clip_by_value(exact, low, high), smooth)
