"""LEAKY_RELU in TensorFlow, with straight-through gradients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tflite_export.ir.requantization import scale_away
from tflite_export.ops.leaky_relu import UNIT, real_factors, whole_factors
from tflite_export.ops.twin_rounding import rescaler
from tflite_export.ops.twin_site import Kernel, Site, finish


def build(site: Site) -> Kernel:
    """The operator at a site."""
    source = site.inputs[0]
    real = real_factors(site.operator, source, site.output)
    whole = [float(factor) for factor in whole_factors(site.operator, source, site.output)]
    fixed = [rescaler(scale_away, np.array([factor], np.float64)) for factor in real]

    def kernel(operands: Sequence[tf.Tensor]) -> tf.Tensor:
        (values,) = operands
        positive = values >= 0
        if site.xnnpack:
            # Whole numbers below 2^24, and a power of two: float32 has them exactly.
            steps = values * tf.where(positive, *whole) / UNIT
            return finish(site, tf.floor(steps + 0.5), steps)
        steps = values * tf.where(positive, *real)
        integers = tf.cast(values, tf.int64)
        exact = tf.where(positive, *(factor(integers) for factor in fixed))
        return finish(site, tf.cast(exact, tf.float32), steps)

    return kernel
