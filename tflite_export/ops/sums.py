"""What ADD and SUB share: fixed-point sums of two operands on grids of their own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tflite_export.ir.graph import Elementwise, Operator, Tensor
from tflite_export.ir.requantization import Rescale, scale_away
from tflite_export.ops import broadcasting, checks, spec


def check_sum(operator: Operator, operands: spec.Operands, output: Tensor) -> spec.Shape:
    """Check the sum or difference of two operands, and return the shape of the result."""
    assert isinstance(operator.options, Elementwise)
    present = broadcasting.check_pair(operands, output)
    checks.check_activation(operator.options)
    if output.dtype != "float32":
        for tensor in present:
            ratio = tensor.scale / output.scale
            checks.require(
                bool(ratio < checks.LARGEST_FACTOR),
                f"scale {ratio} times that of the output, kernels take up to 256",
            )
    return broadcasting.broadcast(present)


def taken_by_xnnpack(inputs: Sequence[Tensor], output: Tensor) -> bool:
    """XNNPACK adds no very much smaller or larger step than the result's."""
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


def rounding_error(step: spec.Step) -> float:
    """By how many steps the result can differ from the real sum."""
    output = step.output.scale
    ratios = [tensor.scale / output for tensor in step.inputs]
    if step.xnnpack:
        _, shift = add_multipliers([t.scale for t in step.inputs], output)
        factors = len(ratios) * 255 * 0.5 * 2.0**-shift
        return 0.5 + factors + sum(255 * float(r) * 2.0**-23 for r in ratios)
    return 1.0 + sum(255 * float(r) * 2.0**-18 for r in ratios)
