"""RESHAPE: the same integers in another shape, the batch first."""

from __future__ import annotations

import math

import numpy as np

from tflite_export.ir.graph import BATCH, NoOptions, Operator, Tensor
from tflite_export.ir.schema import OperatorSchema
from tflite_export.ops import spec
from tflite_export.ops.checks import Problem, operands_of, require, same_grid


def _check(operator: Operator, operands: spec.Operands, output: Tensor) -> spec.Shape:
    del operator
    source, target = operands_of(operands, 2, 2)
    same_grid([source, output])
    require(not source.is_constant, "the input is a constant")
    if target.data is None or target.dtype != "int32" or len(target.shape) != 1:
        raise Problem("the new shape is not a constant list of int32")
    shape = tuple(int(size) for size in target.data)
    require(bool(shape) and all(size >= 1 for size in shape[1:]), f"new shape {shape}")
    require(math.prod(shape[1:]) == math.prod(source.shape[1:]), f"{source.shape} into {shape}")
    require(shape[0] in (BATCH, source.shape[0]), f"new shape {shape} changes the batch")
    return (source.shape[0], *shape[1:])


def _reference(step: spec.Step, operands: list[np.ndarray]) -> np.ndarray:
    return operands[0].reshape(-1, *step.output.shape[1:])


SPEC = spec.OperatorSpec(
    kind="RESHAPE",
    schema=OperatorSchema(NoOptions, 17, "ReshapeOptions", version=1),
    check=_check,
    xnnpack=spec.unless_int4_or_int16,
    reference=_reference,
    macs=spec.no_macs,
    keeps=spec.Keeps.INTEGERS,
    obstacle=spec.any_type,
    interval=spec.increasing(_reference),
    norm=spec.non_expansive,
    stacked=False,
    several=False,
    rounding_error=spec.exact,
    int16_in=spec.KERNEL_SETS,
    missing_in=(),
    twin="reshape_twin",
)
