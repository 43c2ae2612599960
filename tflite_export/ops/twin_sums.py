"""What ADD and SUB share in TensorFlow: fixed-point sums, with straight-through gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tflite_export.ir.requantization import Rescale, scale_away
from tflite_export.ops.sums import add_multipliers
from tflite_export.ops.twin_rounding import rescaler, shift_right
from tflite_export.ops.twin_site import Kernel, Site, both_operands, finish

Sums = Callable[[Sequence[tf.Tensor]], tf.Tensor]


def kernel_of(site: Site, exact: Sums, signs: tuple[int, int]) -> Kernel:
    """Return the operator at a site.

    Args:
        site: where it stands.
        exact: from the two terms, signs included, to steps of the result.
        signs: of the operands.
    """
    ratios = [
        sign * float(np.float32(tensor.scale / site.output.scale))
        for sign, tensor in zip(signs, site.inputs, strict=True)
    ]
    every = both_operands(site)

    def kernel(operands: Sequence[tf.Tensor]) -> tf.Tensor:
        left, right = every(operands)
        smooth = left * ratios[0] + right * ratios[1]
        sums = exact([left * signs[0], right * signs[1]])
        return finish(site, tf.cast(sums, tf.float32), smooth)

    return kernel


def sum_of_xnnpack(site: Site) -> Sums:
    """XNNPACK's sums, int32."""
    (first, second), shift = add_multipliers([t.scale for t in site.inputs], site.output.scale)

    def sums(terms: Sequence[tf.Tensor]) -> tf.Tensor:
        left, right = (tf.cast(term, tf.int32) for term in terms)
        return shift_right(left * first + right * second + (1 << (shift - 1)), shift)

    return sums


def sum_of_builtin(site: Site, rounding: Rescale) -> Sums:
    """The sums of built-in and reference kernels, int64.

    Args:
        site: where the operator stands.
        rounding: how the terms are brought to a common scale.
    """
    largest = 2.0 * max(float(tensor.scale) for tensor in site.inputs)
    last = rescaler(scale_away, np.array([largest / (2**20 * float(site.output.scale))]))
    factors = [rescaler(rounding, np.array([float(t.scale) / largest])) for t in site.inputs]

    def sums(terms: Sequence[tf.Tensor]) -> tf.Tensor:
        left, right = (
            factor(tf.cast(term, tf.int64) * (1 << 20))
            for factor, term in zip(factors, terms, strict=True)
        )
        return last(left + right)

    return sums
