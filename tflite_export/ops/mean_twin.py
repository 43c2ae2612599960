"""MEAN in TensorFlow, with straight-through gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tflite_export.ir.graph import Reduction
from tflite_export.ir.requantization import mean_multiplier, scale_away, scale_upward
from tflite_export.ops.mean import (
    count_of,
    is_of_stored_integers,
    mean_factors,
    stored_factors,
)
from tflite_export.ops.moving import axes_of
from tflite_export.ops.twin_rounding import multiplier_rescaler, rescaler
from tflite_export.ops.twin_site import Kernel, Site, finish

Rounding = Callable[[tf.Tensor], tf.Tensor]
"""From sums of centred integers to centred integers of the result, float32."""


def build(site: Site) -> Kernel:
    """The operator at a site."""
    options, source = site.operator.options, site.inputs[0]
    assert isinstance(options, Reduction)
    axes = axes_of(site.inputs[1], len(source.shape))
    count = count_of(source, axes)
    real = float(source.scale) / float(site.output.scale)
    if site.xnnpack:
        exact = _in_float32(site, axes)
    elif not site.kernels.divides and is_of_stored_integers(site.operator, source, axes):
        exact = _of_stored(site, count)
    else:
        fixed = multiplier_rescaler(scale_away, [mean_multiplier(real, count)])

        def exact(centred: tf.Tensor) -> tf.Tensor:
            return tf.cast(fixed(tf.cast(centred, tf.int64)), tf.float32)

    def kernel(operands: Sequence[tf.Tensor]) -> tf.Tensor:
        centred = tf.reduce_sum(operands[0], axis=axes, keepdims=options.keep_dims)
        return finish(site, exact(centred), centred * (real / count))

    return kernel


def _in_float32(site: Site, axes: tuple[int, ...]) -> Rounding:
    source, output = site.inputs[0], site.output
    factor, offset = mean_factors(source, output, axes)
    shift = float(count_of(source, axes) * source.zero_point)
    return lambda centred: tf.round((centred + shift) * factor + offset) - float(output.zero_point)


def _of_stored(site: Site, count: int) -> Rounding:
    source, output = site.inputs[0], site.output
    real, offset = stored_factors(source, output, count)
    away, upward = (rescaler(way, np.array([real])) for way in (scale_away, scale_upward))
    whole = source.shape[-1] // 16 * 16 if site.kernels.sixteens else 0
    in_vectors = np.arange(source.shape[-1]) < whole

    def exact(centred: tf.Tensor) -> tf.Tensor:
        stored = tf.cast(centred, tf.int64) + count * source.zero_point
        scaled = tf.where(in_vectors, upward(stored), away(stored))
        return tf.cast(scaled + offset - output.zero_point, tf.float32)

    return exact
