"""GATHER: entries along a dimension other than the batch, at constant positions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tflite_export.ir.graph import Operator, Options, Tensor
from tflite_export.ir.schema import OperatorSchema, OptionField
from tflite_export.ops import moving, spec
from tflite_export.ops.checks import operands_of, require


@dataclass(frozen=True)
class Gather(Options):
    """Options of ``GATHER``: the dimension, and how many lead to positions of their own."""

    axis: int = 0
    batch_dims: int = 0


def places(operator: Operator, operands: list[Tensor]) -> tuple[np.ndarray, int]:
    """The positions and the dimension along which they lie."""
    assert isinstance(operator.options, Gather)
    source, positions = operands
    axis = moving.axis_of(operator.options.axis, len(source.shape))
    return moving.indices_of(positions, "the list of positions", (0, 1, 2)), axis


def _check(operator: Operator, operands: spec.Operands, output: Tensor) -> spec.Shape:
    options = operator.options
    assert isinstance(options, Gather)
    present = operands_of(operands, 2, 2)
    source = present[0]
    moving.check_moved(source, output)
    require(options.batch_dims == 0, f"batch_dims is {options.batch_dims}, expected 0")
    positions, axis = places(operator, present)
    size = source.shape[axis]
    require(
        positions.size > 0 and bool((positions >= 0).all() and (positions < size).all()),
        f"positions {positions.reshape(-1)[:9].tolist()} are not all within {size}",
    )
    shape = (*source.shape[:axis], *positions.shape, *source.shape[axis + 1 :])
    require(len(shape) <= moving.LARGEST_RANK, f"a result of {len(shape)} dimensions")
    return shape


def _reference(step: spec.Step, operands: list[np.ndarray]) -> np.ndarray:
    positions, axis = places(step.operator, step.inputs)
    return operands[0].take(positions, axis=axis)


def _norm(step: spec.Step) -> float:
    """How often the entry that is taken most often stands in the result, as a root."""
    positions, _ = places(step.operator, step.inputs)
    most = int(np.bincount(positions.reshape(-1)).max())
    return 1.0 if most == 1 else math.sqrt(most) * spec.ROUND_UP


SPEC = moving.moving_spec(
    "GATHER",
    OperatorSchema(
        Gather,
        23,
        "GatherOptions",
        (OptionField("axis", 0, "int32"), OptionField("batch_dims", 1, "int32")),
    ),
    _check,
    _reference,
    norm=_norm,
    stacked=False,
    several=False,
)
