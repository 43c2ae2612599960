"""EXPAND_DIMS: a dimension of size 1 more."""

from __future__ import annotations

import numpy as np

from tflite_export.ir.graph import NoOptions, Operator, Tensor
from tflite_export.ir.schema import OperatorSchema
from tflite_export.ops import moving, spec
from tflite_export.ops.checks import operands_of, require


def _check(operator: Operator, operands: spec.Operands, output: Tensor) -> spec.Shape:
    del operator
    source, axes = operands_of(operands, 2, 2)
    moving.check_moved(source, output)
    named = moving.indices_of(axes, "the axis", (0, 1)).reshape(-1)
    require(len(named) == 1, f"{len(named)} axes, expected 1")
    rank = len(source.shape) + 1
    axis = moving.axis_of(int(named[0]), rank)
    return (*source.shape[:axis], 1, *source.shape[axis:])


def _reference(step: spec.Step, operands: list[np.ndarray]) -> np.ndarray:
    return operands[0].reshape(-1, *step.output.shape[1:])


SPEC = moving.moving_spec(
    "EXPAND_DIMS",
    OperatorSchema(NoOptions, 52, "ExpandDimsOptions", version=1),
    _check,
    _reference,
    norm=spec.non_expansive,
    stacked=False,
    several=False,
)
