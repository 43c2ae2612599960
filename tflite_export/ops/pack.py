"""PACK: activations of one shape and grid, side by side along a new dimension."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tflite_export.ir.graph import Operator, Options, Tensor
from tflite_export.ir.schema import OperatorSchema, OptionField
from tflite_export.ops import moving, spec
from tflite_export.ops.checks import operands_of, require


@dataclass(frozen=True)
class Pack(Options):
    """Options of ``PACK``: how many operands it has, and where the new dimension goes."""

    values_count: int = 0
    axis: int = 0


def _check(operator: Operator, operands: spec.Operands, output: Tensor) -> spec.Shape:
    options = operator.options
    assert isinstance(options, Pack)
    present = operands_of(operands, 1, 1024)
    require(
        len(present) == len(operands) == options.values_count,
        f"{len(present)} operands where {options.values_count} are announced",
    )
    shape = present[0].shape
    for tensor in present:
        moving.check_moved(tensor, output)
        require(tensor.shape == shape, f"{tensor.name!r} has shape {tensor.shape}, not {shape}")
    require(len(shape) < moving.LARGEST_RANK, f"{len(shape)} dimensions and one more")
    axis = moving.axis_of(options.axis, len(shape) + 1)
    return (*shape[:axis], len(present), *shape[axis:])


def _reference(step: spec.Step, operands: list[np.ndarray]) -> np.ndarray:
    assert isinstance(step.operator.options, Pack)
    return np.stack(operands, axis=step.operator.options.axis)


SPEC = moving.moving_spec(
    "PACK",
    OperatorSchema(
        Pack,
        59,
        "PackOptions",
        (OptionField("values_count", 0, "int32"), OptionField("axis", 1, "int32")),
    ),
    _check,
    _reference,
    norm=spec.non_expansive,
    stacked=True,
    several=False,
)
