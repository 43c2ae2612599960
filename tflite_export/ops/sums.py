"""What ADD and SUB share: fixed-point sums of two operands on grids of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tflite_export.ir.graph import Elementwise, Operator, Tensor
from tflite_export.ir.requantization import Rescale, fixed_point, scale_away
from tflite_export.ir.schema import OptionField, activation_field
from tflite_export.ops import broadcasting, checks, spec
from tflite_export.ops.vectors import vectors_of

FIELDS = (activation_field(0), OptionField("pot_scale_int16", 1, "bool", 1))
"""How the options of both are stored."""

WIDE_SHIFT = 15
"""Bits that kernels shift terms of int16 to the left before they bring them to one scale."""

_NEAR_POWER = 1e-3
"""How near a whole number the logarithm of a step is that kernels take for a power of two."""


def check_sum(operator: Operator, operands: spec.Operands, output: Tensor) -> spec.Shape:
    """Check the sum or difference of two operands, and return the shape of the result."""
    assert isinstance(operator.options, Elementwise)
    present = broadcasting.check_pair(operands, output)
    options = operator.options
    checks.check_activation(options)
    checks.require(
        output.dtype != "int16"
        or not (options.pot_scale_int16 and all(_is_power_of_two(t) for t in (*present, output))),
        "int16 steps that are powers of two, which kernels shift by",
    )
    if output.dtype != "float32":
        for tensor in present:
            ratio = tensor.scale / output.scale
            checks.require(
                bool(ratio < checks.LARGEST_FACTOR),
                f"scale {ratio} times that of the output, kernels take up to 256",
            )
    return broadcasting.broadcast(present)


def _is_power_of_two(tensor: Tensor) -> bool:
    """Whether kernels take a tensor's step for a power of two."""
    power = math.log2(float(tensor.scale))
    return abs(power - round(power)) < _NEAR_POWER


def taken_by_xnnpack(inputs: Sequence[Tensor], output: Tensor) -> bool:
    """XNNPACK adds no int16, and no very much smaller or larger step than the result's."""
    if output.dtype == "int16":
        return False
    ratios = np.array([tensor.scale / output.scale for tensor in inputs])
    return bool((ratios >= 2.0**-10).all() and (ratios < 2.0**8).all())


def add_multipliers(scales: Sequence[np.float32], output: np.float32) -> tuple[list[int], int]:
    """XNNPACK's fixed-point factors of an addition: about 20 bits each, one common shift."""
    ratios = [np.float32(scale / output) for scale in scales]
    shift = 20 - (int(np.frexp(max(ratios))[1]) - 1)
    return [int(np.rint(np.ldexp(np.float64(ratio), shift))) for ratio in ratios], shift


def centred(step: spec.Step, operands: list[np.ndarray]) -> list[np.ndarray]:
    """The operands counted from their zero points, int64."""
    return [v.astype(np.int64) - t.zero_point for v, t in zip(operands, step.inputs, strict=True)]


def sum_of_xnnpack(step: spec.Step, terms: Sequence[np.ndarray]) -> np.ndarray:
    """The sum of two terms in steps of the result, as XNNPACK rounds it."""
    (first, second), shift = add_multipliers([t.scale for t in step.inputs], step.output.scale)
    return (terms[0] * first + terms[1] * second + (1 << (shift - 1))) >> shift


def sum_of_builtin(step: spec.Step, terms: Sequence[np.ndarray], first: Rescale) -> np.ndarray:
    """The same as built-in and reference kernels round it.

    Args:
        step: the operator.
        terms: counted from their zero points.
        first: the rounding that brings the terms to a common scale.
    """
    largest = 2.0 * max(float(tensor.scale) for tensor in step.inputs)
    shifted = [
        first(term << 20, np.array([float(tensor.scale) / largest]))
        for term, tensor in zip(terms, step.inputs, strict=True)
    ]
    factor = np.array([largest / (2**20 * float(step.output.scale))])
    return scale_away(shifted[0] + shifted[1], factor)


def wide_factors(inputs: Sequence[Tensor], output: Tensor) -> tuple[list[float], float]:
    """The factors of int16 kernels: of the two terms, 15 bits to the left, and of their sum."""
    largest = 2.0 * max(float(tensor.scale) for tensor in inputs)
    firsts = [float(tensor.scale) / largest for tensor in inputs]
    return firsts, largest / (2**WIDE_SHIFT * float(output.scale))


def in_vectors(first: float) -> tuple[int, float]:
    """How built-in kernels bring a term of int16 to the scale of the sum in vectors.

    All shifts are made before the product is rounded.

    Args:
        first: the factor of `wide_factors`.

    Returns:
        Bits that are cut off the term, and the factor of what is left.
    """
    multiplier, shift = fixed_point(first)
    shift += WIDE_SHIFT
    return max(-shift, 0), math.ldexp(multiplier, max(shift, 0) - 31)


def sums_of_int16(step: spec.Step, terms: Sequence[np.ndarray], sign: int) -> list[np.ndarray]:
    """The sum or difference of two int16 terms as built-in and reference kernels round it.

    Args:
        step: the operator.
        terms: of the sum.
        sign: of the second term.

    Returns:
        One by one and, of sums of the built-in kernels, in vectors.
    """
    firsts, last = wide_factors(step.inputs, step.output)
    left, right = (
        scale_away(term << WIDE_SHIFT, np.array([factor]))
        for term, factor in zip(terms, firsts, strict=True)
    )
    ways = [scale_away(left + sign * right, np.array([last]))]
    if step.kernels.divides or step.operator.kind == "SUB":
        return ways
    left, right = (
        scale_away(term >> cut, np.array([factor]))
        for term, (cut, factor) in zip(terms, map(in_vectors, firsts), strict=True)
    )
    return [*ways, scale_away(left + right, np.array([last]))]


def each_in_its_way(step: spec.Step, ways: Sequence[np.ndarray]) -> np.ndarray:
    """The result of sums, each entry as the kernels round it at its place.

    Args:
        step: the operator.
        ways: the sums one by one and, if the kernels have such, in vectors.
    """
    one_by_one, *in_vectors = ways
    if not in_vectors:
        return step.finish(one_by_one)
    inside = vectors_of(step).inside(one_by_one.shape)
    return step.finish(np.where(inside, in_vectors[0], one_by_one))


def in_the_worse_way(
    step: spec.Step, low: Sequence[np.ndarray], high: Sequence[np.ndarray]
) -> spec.Box:
    """Bound the result; how an entry is rounded may depend on its place in the batch.

    Args:
        step: the operator.
        low: the smallest sums, in each way.
        high: the largest, in each way.
    """
    ends = np.minimum.reduce(list(low)), np.maximum.reduce(list(high))
    return step.typed(step.finish(ends[0])), step.typed(step.finish(ends[1]))


def rounding_error(step: spec.Step) -> float:
    """By how many steps the result can differ from the real sum."""
    output = step.output.scale
    ratios = [tensor.scale / output for tensor in step.inputs]
    if step.output.dtype == "int16":
        # Terms are rounded to whole units of the sum, which is rounded in halves of a step.
        return 1.0 + spec.WIDE_ERROR + 2.0**-WIDE_SHIFT * 8 * float(max(ratios))
    if step.xnnpack:
        _, shift = add_multipliers([t.scale for t in step.inputs], output)
        factors = len(ratios) * 255 * 0.5 * 2.0**-shift
        return 0.5 + factors + sum(255 * float(r) * 2.0**-23 for r in ratios)
    return 1.0 + sum(255 * float(r) * 2.0**-18 for r in ratios)
