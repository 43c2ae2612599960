"""What ADD and SUB share in keras.ops: fixed-point sums, with straight-through gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from keras import ops

from tflite_export.ir.requantization import Rescale, scale_away
from tflite_export.ops.spec import Step
from tflite_export.ops.sums import WIDE_SHIFT, add_multipliers, in_vectors, wide_factors
from tflite_export.ops.twin_rounding import rescaler, shift_right
from tflite_export.ops.twin_site import Kernel, Site, both_operands, finish
from tflite_export.ops.twin_wide import wide_numbers
from tflite_export.ops.vectors import vectors_of

Sums = Callable[[Sequence[Any]], Any]


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

    def kernel(operands: Sequence[Any]) -> Any:
        left, right = every(operands)
        smooth = left * ratios[0] + right * ratios[1]
        terms = [
            ops.stop_gradient(term if sign > 0 else -term)
            for sign, term in zip(signs, (left, right), strict=True)
        ]
        with wide_numbers():
            sums = ops.cast(exact(terms), "float32")
        return finish(site, sums, smooth)

    return kernel


def sum_of_xnnpack(site: Site) -> Sums:
    """XNNPACK's sums, int32."""
    (first, second), shift = add_multipliers([t.scale for t in site.inputs], site.output.scale)

    def sums(terms: Sequence[Any]) -> Any:
        left, right = (ops.cast(term, "int32") for term in terms)
        return shift_right(left * first + right * second + (1 << (shift - 1)), shift)

    return sums


def sum_of_int16(site: Site, sign: int) -> Sums:
    """The sums of two int16 terms, int64; to be called in `wide_numbers`.

    Args:
        site: where the operator stands.
        sign: of the second term.
    """
    firsts, last = wide_factors(site.inputs, site.output)
    shift = 2**WIDE_SHIFT
    first, second, final = (rescaler(scale_away, np.array([factor])) for factor in (*firsts, last))
    cuts, factors = zip(*(in_vectors(factor) for factor in firsts), strict=True)
    together = [rescaler(scale_away, np.array([factor])) for factor in factors]

    def sums(terms: Sequence[Any]) -> Any:
        left, right = (ops.cast(term, "int64") for term in terms)
        right = sign * right
        one_by_one = final(first(left * shift) + sign * second(right * shift))
        if site.kernels.divides or site.operator.kind == "SUB":
            return one_by_one
        vectors = final(
            together[0](shift_right(left, cuts[0])) + together[1](shift_right(right, cuts[1]))
        )
        return ops.where(inside_vectors(site, one_by_one), vectors, one_by_one)

    return sums


def inside_vectors(site: Site, result: Any) -> Any:
    """Which entries of a result built-in kernels compute in vectors."""
    kind = vectors_of(Step(site.operator, site.inputs, site.output, site.kernels, site.xnnpack))
    shape = ops.shape(result)
    rows = shape[0] if kind.batched else 1
    if kind.alone:
        rows = ops.cast(ops.equal(shape[0], 1), "int32")
    row = kind.row * rows
    places = ops.reshape(ops.arange(ops.size(result), dtype="int32"), shape)
    return places % ops.maximum(row, 1) < row // kind.lanes * kind.lanes


def sum_of_builtin(site: Site, rounding: Rescale) -> Sums:
    """The sums of built-in and reference kernels, int64; to be called in `wide_numbers`.

    Args:
        site: where the operator stands.
        rounding: how the terms are brought to a common scale.
    """
    largest = 2.0 * max(float(tensor.scale) for tensor in site.inputs)
    last = rescaler(scale_away, np.array([largest / (2**20 * float(site.output.scale))]))
    factors = [rescaler(rounding, np.array([float(t.scale) / largest])) for t in site.inputs]

    def sums(terms: Sequence[Any]) -> Any:
        left, right = (
            factor(ops.cast(term, "int64") * (1 << 20))
            for factor, term in zip(factors, terms, strict=True)
        )
        return last(left + right)

    return sums
