"""MEAN in TensorFlow, with straight-through gradients."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tflite_export.ir.requantization import mean_multiplier, scale_away
from tflite_export.ops.mean import mean_factors
from tflite_export.ops.twin_rounding import multiplier_rescaler
from tflite_export.ops.twin_site import Kernel, Site, finish


def build(site: Site) -> Kernel:
    """The operator at a site."""
    source, output = site.inputs[0], site.output
    count = source.shape[1] * source.shape[2]
    factor, offset = mean_factors(source, output)
    real = float(source.scale) / float(output.scale)
    multiplier = mean_multiplier(real, count)
    fixed = None if site.xnnpack else multiplier_rescaler(scale_away, [multiplier])

    def kernel(operands: Sequence[tf.Tensor]) -> tf.Tensor:
        centred = tf.reduce_sum(operands[0], axis=(1, 2))
        if fixed is None:
            stored = centred + float(count * source.zero_point)
            exact = tf.round(stored * factor + offset) - float(output.zero_point)
        else:
            exact = tf.cast(fixed(tf.cast(centred, tf.int64)), tf.float32)
        return finish(site, exact, centred * (real / count))

    return kernel
