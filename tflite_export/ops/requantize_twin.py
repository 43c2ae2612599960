"""QUANTIZE in TensorFlow, of floats and of integers of another grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tflite_export.ir.requantization import scale_away, scale_upward
from tflite_export.ops import quantize_twin
from tflite_export.ops.quantize import LANES, UNIT, ratio, whole_ratio
from tflite_export.ops.twin_rounding import rescaler
from tflite_export.ops.twin_site import Kernel, Site, finish


def build(site: Site) -> Kernel:
    """The operator at a site."""
    (source,) = site.inputs
    if source.dtype == "float32":
        return quantize_twin.build(site)
    real, whole = ratio(source, site.output), float(whole_ratio(source, site.output))
    away, upward = (rescaler(how, np.array([real])) for how in (scale_away, scale_upward))
    low, high = (np.array([end * real]) for end in site.spans[0])

    def kernel(operands: Sequence[tf.Tensor]) -> tf.Tensor:
        (values,) = operands
        steps = values * real
        if site.xnnpack:
            # Whole numbers below 2^24, and a power of two: float32 has them exactly.
            return finish(site, tf.floor(values * whole / UNIT + 0.5), steps, (low, high))
        integers = tf.cast(values, tf.int64)
        exact = away(integers)
        if site.kernels.sixteens:
            places = tf.reshape(tf.range(tf.size(values)), tf.shape(values))
            inside = places < tf.size(values) // LANES * LANES
            exact = tf.where(inside, upward(integers), exact)
        return finish(site, tf.cast(exact, tf.float32), steps, (low, high))

    return kernel
