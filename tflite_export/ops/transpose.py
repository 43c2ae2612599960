"""TRANSPOSE: the dimensions in another order, the batch first."""

from __future__ import annotations

import numpy as np

from tflite_export.ir.graph import NoOptions, Operator, Tensor
from tflite_export.ir.schema import OperatorSchema
from tflite_export.ops import moving, spec
from tflite_export.ops.checks import operands_of, require


def order(operands: list[Tensor]) -> tuple[int, ...]:
    """The dimension of the operand that each dimension of the result is."""
    source, axes = operands
    rank = len(source.shape)
    found = moving.indices_of(axes, "the order")
    require(len(found) == rank, f"an order of {len(found)} for {rank} dimensions")
    counted = [int(axis) + rank if axis < 0 else int(axis) for axis in found]
    require(sorted(counted) == list(range(rank)), f"{found.tolist()} is not an order of {rank}")
    require(counted[0] == 0, f"the order {found.tolist()} moves the batch")
    return tuple(counted)


def _check(operator: Operator, operands: spec.Operands, output: Tensor) -> spec.Shape:
    del operator
    present = operands_of(operands, 2, 2)
    moving.check_moved(present[0], output)
    return tuple(present[0].shape[axis] for axis in order(present))


def _reference(step: spec.Step, operands: list[np.ndarray]) -> np.ndarray:
    return operands[0].transpose(order(step.inputs))


SPEC = moving.moving_spec(
    "TRANSPOSE",
    OperatorSchema(NoOptions, 26, "TransposeOptions"),
    _check,
    _reference,
    norm=spec.non_expansive,
    stacked=False,
    several=False,
)
