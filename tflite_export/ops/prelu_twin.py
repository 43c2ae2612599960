"""PRELU in TensorFlow, with straight-through gradients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tflite_export.ir.requantization import scale_away
from tflite_export.ops.prelu import factors
from tflite_export.ops.twin_rounding import rescaler
from tflite_export.ops.twin_site import Kernel, Site, both_operands, finish


def build(site: Site) -> Kernel:
    """The operator at a site."""
    source, slopes = site.inputs
    real = factors(source, slopes, site.output)
    above, below = (rescaler(scale_away, np.array([factor])) for factor in real)
    every = both_operands(site)

    def kernel(operands: Sequence[tf.Tensor]) -> tf.Tensor:
        values, factors_below = every(operands)
        products = values * factors_below
        positive = values >= 0
        exact = tf.where(
            positive, above(tf.cast(values, tf.int64)), below(tf.cast(products, tf.int64))
        )
        steps = tf.where(positive, values * real[0], products * real[1])
        return finish(site, tf.cast(exact, tf.float32), steps)

    return kernel
