"""SQUEEZE: dimensions of size 1 left out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tflite_export.ir.graph import Operator, Options, Tensor
from tflite_export.ir.schema import OperatorSchema, OptionField
from tflite_export.ops import moving, spec
from tflite_export.ops.checks import operands_of, require


@dataclass(frozen=True)
class Squeeze(Options):
    """Options of ``SQUEEZE``: the dimensions that are left out."""

    squeeze_dims: tuple[int, ...] = ()


def _check(operator: Operator, operands: spec.Operands, output: Tensor) -> spec.Shape:
    options = operator.options
    assert isinstance(options, Squeeze)
    (source,) = operands_of(operands, 1, 1)
    moving.check_moved(source, output)
    require(
        bool(options.squeeze_dims),
        "no dimension is named, so that all of size 1 go, the batch of one sample among them",
    )
    gone = {moving.axis_of(axis, len(source.shape)) for axis in options.squeeze_dims}
    for axis in gone:
        require(source.shape[axis] == 1, f"dimension {axis} of {source.shape} is not 1")
    return tuple(size for axis, size in enumerate(source.shape) if axis not in gone)


def _reference(step: spec.Step, operands: list[np.ndarray]) -> np.ndarray:
    return operands[0].reshape(-1, *step.output.shape[1:])


SPEC = moving.moving_spec(
    "SQUEEZE",
    OperatorSchema(
        Squeeze, 30, "SqueezeOptions", (OptionField("squeeze_dims", 0, "list"),), version=1
    ),
    _check,
    _reference,
    norm=spec.non_expansive,
    stacked=False,
    several=False,
)
