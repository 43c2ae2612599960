"""SPLIT: an activation in equal parts along a dimension other than the batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tflite_export.ir.graph import Operator, Options, Tensor
from tflite_export.ir.schema import OperatorSchema, OptionField
from tflite_export.ops import moving, spec
from tflite_export.ops.checks import operands_of, require


@dataclass(frozen=True)
class Split(Options):
    """Options of ``SPLIT``: the number of parts."""

    num_splits: int = 0


def axis_of(operands: list[Tensor]) -> int:
    """The dimension that is parted."""
    axis, source = operands
    named = moving.indices_of(axis, "the axis", (0, 1)).reshape(-1)
    require(len(named) == 1, f"{len(named)} axes, expected 1")
    return moving.axis_of(int(named[0]), len(source.shape))


def _check(operator: Operator, operands: spec.Operands, output: Tensor) -> spec.Shape:
    options = operator.options
    assert isinstance(options, Split)
    present = operands_of(operands, 2, 2)
    source = present[1]
    moving.check_moved(source, output)
    axis, count = axis_of(present), len(operator.outputs)
    require(
        count == options.num_splits, f"{count} results where {options.num_splits} are announced"
    )
    size = source.shape[axis]
    require(size % count == 0, f"{size} entries in {count} parts")
    return (*source.shape[:axis], size // count, *source.shape[axis + 1 :])


def _reference(step: spec.Step, operands: list[np.ndarray]) -> np.ndarray:
    axis = axis_of(step.inputs)
    return np.split(operands[1], len(step.operator.outputs), axis)[step.place]


SPEC = moving.moving_spec(
    "SPLIT",
    OperatorSchema(Split, 35, "SplitOptions", (OptionField("num_splits", 0, "int32"),)),
    _check,
    _reference,
    norm=spec.non_expansive,
    stacked=False,
    several=True,
)
