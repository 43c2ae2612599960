"""REDUCE_MAX: the largest entry along dimensions other than the batch."""

from __future__ import annotations

import numpy as np

from tflite_export.ir.graph import Operator, Reduction, Tensor
from tflite_export.ir.schema import OperatorSchema, OptionField
from tflite_export.ops import moving, spec
from tflite_export.ops.checks import operands_of


def _check(operator: Operator, operands: spec.Operands, output: Tensor) -> spec.Shape:
    assert isinstance(operator.options, Reduction)
    source, axes = operands_of(operands, 2, 2)
    moving.check_moved(source, output)
    named = moving.axes_of(axes, len(source.shape))
    return moving.reduced(source.shape, named, operator.options.keep_dims)


def _reference(step: spec.Step, operands: list[np.ndarray]) -> np.ndarray:
    assert isinstance(step.operator.options, Reduction)
    axes = moving.axes_of(step.inputs[1], len(step.inputs[0].shape))
    return operands[0].max(axis=axes, keepdims=step.operator.options.keep_dims)


SPEC = moving.moving_spec(
    "REDUCE_MAX",
    OperatorSchema(Reduction, 27, "ReducerOptions", (OptionField("keep_dims", 0, "bool"),)),
    _check,
    _reference,
    norm=spec.non_expansive,
    stacked=False,
    several=False,
)
