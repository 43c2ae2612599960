"""ARG_MAX: the position of the largest entry along a dimension other than the batch.

Of entries that tie it is the first one, in every kernel set.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tflite_export.ir.graph import Operator, Options, Tensor
from tflite_export.ir.schema import TENSOR_TYPES, OperatorSchema, OptionField
from tflite_export.ops import checks, moving, spec


@dataclass(frozen=True)
class ArgMax(Options):
    """Options of ``ARG_MAX``: the type of the positions, ``"int32"`` or ``"int64"``."""

    output_type: str = "int64"


def axis_of_positions(axis: Tensor, source: Tensor) -> int:
    """The dimension that positions are counted along.

    Args:
        axis: the second operand, a constant of one number.
        source: the first operand.
    """
    named = moving.indices_of(axis, "the axis", (0, 1)).reshape(-1)
    checks.require(named.size == 1, f"{named.size} axes are named, expected one")
    return moving.axis_of(int(named[0]), len(source.shape))


def _check(operator: Operator, operands: spec.Operands, output: Tensor) -> spec.Shape:
    options = operator.options
    assert isinstance(options, ArgMax)
    source, axis = checks.operands_of(operands, 2, 2)
    checks.quantized_or_float(source)
    checks.require(not source.is_constant, "the operand is a constant")
    checks.require(
        options.output_type in ("int32", "int64") and output.dtype == options.output_type,
        f"positions of type {options.output_type} in a result of type {output.dtype}, expected "
        "int32 or int64 of both",
    )
    checks.require(output.quantization is None, "positions have no scale")
    along = axis_of_positions(axis, source)
    return moving.reduced(source.shape, (along,), keep=False)


def _reference(step: spec.Step, operands: list[np.ndarray]) -> np.ndarray:
    return operands[0].argmax(axis=axis_of_positions(step.inputs[1], step.inputs[0]))


def _no_order(step: spec.Step, boxes: list[spec.Box]) -> spec.Box:
    del boxes
    raise ValueError(
        f"operator ARG_MAX, which computes {step.output.name!r}: the order of positions means "
        "nothing; bound the scores before it"
    )


def _no_distance(step: spec.Step) -> float:
    raise ValueError(
        f"operator ARG_MAX, which computes {step.output.name!r}: positions have no distance; bound "
        "the scores before it"
    )


def _obstacle(inputs: spec.Operands, output: Tensor) -> str:
    del inputs, output
    return "gives positions, whose order means nothing; the scores before it can be certified"


def _left_to_others(inputs: spec.Operands, output: Tensor) -> bool:
    del inputs, output
    return False


SPEC = spec.OperatorSpec(
    kind="ARG_MAX",
    schema=OperatorSchema(
        ArgMax, 40, "ArgMaxOptions", (OptionField("output_type", 0, "int8", choices=TENSOR_TYPES),)
    ),
    check=_check,
    xnnpack=_left_to_others,
    reference=_reference,
    macs=spec.no_macs,
    keeps=spec.Keeps.NOTHING,
    obstacle=_obstacle,
    interval=_no_order,
    norm=_no_distance,
    stacked=False,
    several=False,
    rounding_error=spec.exact,
    int16_in=(),
    missing_in=(),
    twin="arg_max_twin",
)
