"""PADV2: a constant around every dimension but the batch."""

from __future__ import annotations

import math

import numpy as np

from tflite_export.ir.graph import NoOptions, Operator, Tensor
from tflite_export.ir.schema import OperatorSchema
from tflite_export.ops import moving, spec
from tflite_export.ops.checks import operands_of, require, same_grid
from tflite_export.ops.padding import check_amounts, padded


def _check(operator: Operator, operands: spec.Operands, output: Tensor) -> spec.Shape:
    del operator
    source, amounts, value = operands_of(operands, 3, 3)
    same_grid([output, value])
    require(
        value.is_constant and math.prod(value.shape) == 1 and len(value.shape) <= 1,
        f"{value.name!r} is not a constant of one number",
    )
    return padded(*check_amounts([source, amounts], output))


def _reference(step: spec.Step, operands: list[np.ndarray]) -> np.ndarray:
    del step
    source, amounts, value = operands
    return np.pad(source, amounts.astype(int), constant_values=value.reshape(-1)[0])


SPEC = moving.moving_spec(
    "PADV2",
    OperatorSchema(NoOptions, 43, "PadV2Options"),
    _check,
    _reference,
    norm=spec.non_expansive,
    stacked=False,
    several=False,
)
