"""UNPACK: each entry along a dimension other than the batch as a result of its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tflite_export.ir.graph import Operator, Options, Tensor
from tflite_export.ir.schema import OperatorSchema, OptionField
from tflite_export.ops import moving, spec
from tflite_export.ops.checks import operands_of, require


@dataclass(frozen=True)
class Unpack(Options):
    """Options of ``UNPACK``: the number of results, and the dimension that they lie along."""

    num: int = 0
    axis: int = 0


def axis_of(operator: Operator, source: Tensor) -> int:
    """The dimension that is taken apart."""
    assert isinstance(operator.options, Unpack)
    return moving.axis_of(operator.options.axis, len(source.shape))


def _check(operator: Operator, operands: spec.Operands, output: Tensor) -> spec.Shape:
    options = operator.options
    assert isinstance(options, Unpack)
    (source,) = operands_of(operands, 1, 1)
    moving.check_moved(source, output)
    axis, count = axis_of(operator, source), len(operator.outputs)
    require(
        count == options.num == source.shape[axis],
        f"{count} results where {options.num} are announced, of {source.shape[axis]} entries",
    )
    return (*source.shape[:axis], *source.shape[axis + 1 :])


def _reference(step: spec.Step, operands: list[np.ndarray]) -> np.ndarray:
    return operands[0].take(step.place, axis_of(step.operator, step.inputs[0]))


SPEC = moving.moving_spec(
    "UNPACK",
    OperatorSchema(
        Unpack,
        64,
        "UnpackOptions",
        (OptionField("num", 0, "int32"), OptionField("axis", 1, "int32")),
    ),
    _check,
    _reference,
    norm=spec.non_expansive,
    stacked=False,
    several=True,
)
