"""ADD in TensorFlow, with straight-through gradients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tflite_export.ir.requantization import Rescale, scale_away, scale_on_avx2
from tflite_export.ops.add import add_multipliers
from tflite_export.ops.twin_rounding import rescaler, shift_right
from tflite_export.ops.twin_site import Kernel, Site, finish


def build(site: Site) -> Kernel:
    """The operator at a site."""
    scales = [tensor.scale for tensor in site.inputs]
    ratios = [float(np.float32(scale / site.output.scale)) for scale in scales]
    exact = _sum_of_xnnpack(site) if site.xnnpack else _sum_of_builtin(site)

    def kernel(operands: Sequence[tf.Tensor]) -> tf.Tensor:
        smooth = operands[0] * ratios[0] + operands[1] * ratios[1]
        return finish(site, tf.cast(exact(operands), tf.float32), smooth)

    return kernel


def _sum_of_xnnpack(site: Site) -> Kernel:
    (first, second), shift = add_multipliers([t.scale for t in site.inputs], site.output.scale)

    def sums(operands: Sequence[tf.Tensor]) -> tf.Tensor:
        left, right = (tf.cast(operand, tf.int32) for operand in operands)
        return shift_right(left * first + right * second + (1 << (shift - 1)), shift)

    return sums


def _sum_of_builtin(site: Site) -> Kernel:
    largest = 2.0 * max(float(tensor.scale) for tensor in site.inputs)
    last = rescaler(scale_away, np.array([largest / (2**20 * float(site.output.scale))]))

    def sums_by(rounding: Rescale) -> Kernel:
        factors = [rescaler(rounding, np.array([float(t.scale) / largest])) for t in site.inputs]

        def sums(operands: Sequence[tf.Tensor]) -> tf.Tensor:
            shifted = [
                factor(tf.cast(operand, tf.int64) * (1 << 20))
                for factor, operand in zip(factors, operands, strict=True)
            ]
            return last(tf.add_n(shifted))

        return sums

    rest, vectors = sums_by(scale_away), sums_by(scale_on_avx2)

    def mixed(operands: Sequence[tf.Tensor]) -> tf.Tensor:
        places = tf.reshape(tf.range(tf.size(operands[0])), tf.shape(operands[0]))
        whole = tf.size(operands[0]) // 16 * 16
        return tf.where(places < whole, vectors(operands), rest(operands))

    return mixed if site.kernels.sixteens else rest
