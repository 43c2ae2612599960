"""SUB: the difference of two operands on grids of their own."""

from __future__ import annotations

import numpy as np

from tflite_export.ir.graph import Elementwise
from tflite_export.ir.requantization import scale_away
from tflite_export.ir.schema import OperatorSchema
from tflite_export.ops import broadcasting, spec, sums


def _ways(step: spec.Step, operands: list[np.ndarray]) -> list[np.ndarray]:
    """The differences one by one, and as they are in vectors where the kernels have such."""
    left, right = sums.centred(step, operands)
    if step.xnnpack:
        return [sums.sum_of_xnnpack(step, (left, -right))]
    if step.output.dtype == "int16":
        return sums.sums_of_int16(step, (left, right), -1)
    return [sums.sum_of_builtin(step, (left, -right), scale_away)]


def _reference(step: spec.Step, operands: list[np.ndarray]) -> np.ndarray:
    return sums.each_in_its_way(step, _ways(step, operands))


def _interval(step: spec.Step, boxes: list[spec.Box]) -> spec.Box:
    """It rises with the first operand and falls with the second."""
    (low, high), (least, most) = boxes
    return sums.in_the_worse_way(step, _ways(step, [low, most]), _ways(step, [high, least]))


SPEC = spec.OperatorSpec(
    kind="SUB",
    schema=OperatorSchema(Elementwise, 28, "SubOptions", sums.FIELDS),
    check=sums.check_sum,
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
    twin="sub_twin",
)
