"""ADD in TensorFlow, with straight-through gradients."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tflite_export.ir.requantization import scale_away
from tflite_export.ops.add import vectors_of
from tflite_export.ops.spec import Step
from tflite_export.ops.twin_site import Kernel, Site
from tflite_export.ops.twin_sums import Sums, kernel_of, sum_of_builtin, sum_of_xnnpack


def build(site: Site) -> Kernel:
    """The operator at a site."""
    return kernel_of(site, sum_of_xnnpack(site) if site.xnnpack else _builtin(site), (1, 1))


def _builtin(site: Site) -> Sums:
    rest = sum_of_builtin(site, scale_away)
    if not site.kernels.sixteens:
        return rest
    kind = vectors_of(Step(site.operator, site.inputs, site.output, site.kernels, site.xnnpack))
    vectors = sum_of_builtin(site, kind.rounding)

    def mixed(terms: Sequence[tf.Tensor]) -> tf.Tensor:
        result = rest(terms)
        row = kind.row * (tf.shape(result)[0] if kind.batched else 1)
        places = tf.reshape(tf.range(tf.size(result)), tf.shape(result)) % tf.maximum(row, 1)
        return tf.where(places < row // kind.lanes * kind.lanes, vectors(terms), result)

    return mixed
