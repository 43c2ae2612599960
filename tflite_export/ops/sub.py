"""SUB: the difference of two operands on grids of their own."""

from __future__ import annotations

import numpy as np

from tflite_export.ir.graph import Elementwise
from tflite_export.ir.requantization import scale_away
from tflite_export.ir.schema import OperatorSchema, activation_field
from tflite_export.ops import broadcasting, spec, sums


def _reference(step: spec.Step, operands: list[np.ndarray]) -> np.ndarray:
    left, right = sums.centred(step, operands)
    if step.xnnpack:
        return step.finish(sums.sum_of_xnnpack(step, (left, -right)))
    return step.finish(sums.sum_of_builtin(step, (left, -right), scale_away))


def _interval(step: spec.Step, boxes: list[spec.Box]) -> spec.Box:
    """It rises with the first operand and falls with the second."""
    (low, high), (least, most) = boxes
    return (
        step.typed(_reference(step, [low, most])),
        step.typed(_reference(step, [high, least])),
    )


SPEC = spec.OperatorSpec(
    kind="SUB",
    schema=OperatorSchema(Elementwise, 28, "SubOptions", (activation_field(0),), ignored=(1,)),
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
    missing_in=(),
    twin="sub_twin",
)
