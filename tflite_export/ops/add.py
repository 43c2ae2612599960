"""ADD: the sum of two operands on grids of their own."""

from __future__ import annotations

import numpy as np

from tflite_export.ir.graph import Elementwise, Operator, Tensor
from tflite_export.ir.requantization import Rescale, scale_away
from tflite_export.ir.schema import OperatorSchema
from tflite_export.ops import broadcasting, checks, spec, sums
from tflite_export.ops.vectors import vectors_of


def _check(operator: Operator, operands: spec.Operands, output: Tensor) -> spec.Shape:
    shape = sums.check_sum(operator, operands, output)
    present = [tensor for tensor in operands if tensor is not None]
    checks.require(
        output.dtype != "uint8" or all(tensor.shape == shape for tensor in present),
        "uint8 operands of two shapes, whose rounding is not known",
    )
    return shape


def _ways(step: spec.Step, operands: list[np.ndarray]) -> list[np.ndarray]:
    """The sums one by one, and as they are in vectors where the kernels have such."""
    terms = sums.centred(step, operands)
    if step.xnnpack:
        return [sums.sum_of_xnnpack(step, terms)]
    if step.output.dtype == "int16":
        return sums.sums_of_int16(step, terms, 1)
    roundings: list[Rescale] = [scale_away]
    if step.kernels.sixteens:
        roundings.append(vectors_of(step).rounding)
    return [sums.sum_of_builtin(step, terms, rounding) for rounding in roundings]


def _reference(step: spec.Step, operands: list[np.ndarray]) -> np.ndarray:
    return sums.each_in_its_way(step, _ways(step, operands))


def _interval(step: spec.Step, boxes: list[spec.Box]) -> spec.Box:
    low, high = (_ways(step, [box[side] for box in boxes]) for side in (0, 1))
    return sums.in_the_worse_way(step, low, high)


SPEC = spec.OperatorSpec(
    kind="ADD",
    schema=OperatorSchema(Elementwise, 11, "AddOptions", sums.FIELDS),
    check=_check,
    xnnpack=sums.taken_by_xnnpack,
    reference=_reference,
    macs=spec.no_macs,
    keeps=spec.Keeps.NOTHING,
    obstacle=spec.integers_only,
    interval=_interval,
    norm=broadcasting.norm,
    stacked=False,
    several=False,
    rounding_error=sums.rounding_error,
    int16_in=spec.KERNEL_SETS,
    missing_in=(),
    twin="add_twin",
)
