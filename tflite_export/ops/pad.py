"""PAD: the zero point around every dimension but the batch."""

from __future__ import annotations

import numpy as np

from tflite_export.ir.graph import NoOptions, Operator, Tensor
from tflite_export.ir.schema import OperatorSchema
from tflite_export.ops import spec
from tflite_export.ops.padding import check_amounts, padded


def _check(operator: Operator, operands: spec.Operands, output: Tensor) -> spec.Shape:
    del operator
    return padded(*check_amounts(operands, output))


def _reference(step: spec.Step, operands: list[np.ndarray]) -> np.ndarray:
    return np.pad(operands[0], operands[1].astype(int), constant_values=step.output.zero_point)


SPEC = spec.OperatorSpec(
    kind="PAD",
    schema=OperatorSchema(NoOptions, 22, "PadOptions"),
    check=_check,
    xnnpack=spec.unless_int4_or_int16,
    reference=_reference,
    macs=spec.no_macs,
    keeps=spec.Keeps.INTEGERS_AND_ZERO,
    obstacle=spec.integers_only,
    interval=spec.increasing(_reference),
    norm=spec.non_expansive,
    stacked=False,
    several=False,
    rounding_error=spec.exact,
    int16_in=spec.KERNEL_SETS,
    missing_in=(),
    twin="pad_twin",
)
