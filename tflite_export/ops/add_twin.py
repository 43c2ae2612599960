"""ADD in TensorFlow, with straight-through gradients."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tflite_export.ir.requantization import scale_away, scale_on_avx2
from tflite_export.ops.twin_site import Kernel, Site
from tflite_export.ops.twin_sums import Sums, kernel_of, sum_of_builtin, sum_of_xnnpack


def build(site: Site) -> Kernel:
    """The operator at a site."""
    return kernel_of(site, sum_of_xnnpack(site) if site.xnnpack else _builtin(site), (1, 1))


def _builtin(site: Site) -> Sums:
    rest, vectors = (sum_of_builtin(site, rounding) for rounding in (scale_away, scale_on_avx2))

    def mixed(terms: Sequence[tf.Tensor]) -> tf.Tensor:
        places = tf.reshape(tf.range(tf.size(terms[0])), tf.shape(terms[0]))
        whole = tf.size(terms[0]) // 16 * 16
        return tf.where(places < whole, vectors(terms), rest(terms))

    return mixed if site.kernels.sixteens else rest
