"""CONCATENATION: activations of one grid side by side."""

from __future__ import annotations

import numpy as np

from tflite_export.ir.graph import Concatenation, Operator, Tensor
from tflite_export.ir.schema import OperatorSchema, OptionField, activation_field
from tflite_export.ops import spec
from tflite_export.ops.checks import check_activation, operands_of, require, same_grid


def _check(operator: Operator, operands: spec.Operands, output: Tensor) -> spec.Shape:
    options = operator.options
    assert isinstance(options, Concatenation)
    present = operands_of(operands, 1, 1024)
    require(len(present) == len(operands), "an operand is left out")
    same_grid([*present, output])
    check_activation(options, ("NONE",))
    first = present[0].shape
    axis = options.axis + len(first) if options.axis < 0 else options.axis
    require(1 <= axis < len(first), f"axis {options.axis} of {len(first)} dimensions")
    for tensor in present:
        fits = len(tensor.shape) == len(first) and all(
            i == axis or tensor.shape[i] == first[i] for i in range(len(first))
        )
        require(
            fits and not tensor.is_constant,
            f"{tensor.name!r} of shape {tensor.shape} does not fit {first}",
        )
    total = sum(tensor.shape[axis] for tensor in present)
    return (*first[:axis], total, *first[axis + 1 :])


def _reference(step: spec.Step, operands: list[np.ndarray]) -> np.ndarray:
    options = step.operator.options
    assert isinstance(options, Concatenation)
    return np.concatenate(operands, axis=options.axis)


SPEC = spec.OperatorSpec(
    kind="CONCATENATION",
    schema=OperatorSchema(
        Concatenation,
        10,
        "ConcatenationOptions",
        (OptionField("axis", 0, "int32"), activation_field(1)),
    ),
    check=_check,
    xnnpack=spec.unless_int4_or_int16,
    reference=_reference,
    macs=spec.no_macs,
    keeps=spec.Keeps.INTEGERS,
    obstacle=spec.any_type,
    interval=spec.increasing(_reference),
    norm=spec.non_expansive,
    stacked=True,
    several=False,
    rounding_error=spec.exact,
    int16_in=spec.KERNEL_SETS,
    missing_in=(),
    twin="concatenation_twin",
)
