"""QUANTIZE: floats onto a grid, or the same integers in the other 8-bit type."""

from __future__ import annotations

import numpy as np

from tflite_export.ir.affine import quantize, quantize_by_division
from tflite_export.ir.graph import NoOptions, Operator, Tensor
from tflite_export.ir.schema import OperatorSchema
from tflite_export.ops import spec
from tflite_export.ops.checks import operands_of, quantized_or_float, require


def _check(operator: Operator, operands: spec.Operands, output: Tensor) -> spec.Shape:
    del operator
    (source,) = operands_of(operands, 1, 1)
    for tensor in (source, output):
        quantized_or_float(tensor)
    require(output.dtype in ("int8", "uint8") and not source.is_constant, f"to {output.dtype}")
    if source.dtype != "float32":
        shift = 128 if source.dtype == "uint8" else -128
        renamed = source.dtype != output.dtype and source.scale == output.scale
        require(
            renamed and source.zero_point - output.zero_point == shift,
            "requantizes to another grid, whose kernels keep only 8 bits of the factor",
        )
    return source.shape


def _reference(step: spec.Step, operands: list[np.ndarray]) -> np.ndarray:
    source = step.inputs[0]
    if source.dtype == "float32":
        divides = step.kernels.divides
        return (quantize_by_division if divides else quantize)(operands[0], step.output)
    return step.finish(operands[0].astype(np.int64) - source.zero_point)


def _rounding_error(step: spec.Step) -> float:
    return 0.5 + spec.FLOAT32_ERROR if step.inputs[0].dtype == "float32" else 0.0


SPEC = spec.OperatorSpec(
    kind="QUANTIZE",
    schema=OperatorSchema(NoOptions, 89, "QuantizeOptions"),
    check=_check,
    xnnpack=spec.unless_int4,
    reference=_reference,
    macs=spec.no_macs,
    keeps=spec.Keeps.NOTHING,
    obstacle=spec.any_type,
    interval=spec.increasing(_reference),
    norm=spec.non_expansive,
    stacked=False,
    several=False,
    rounding_error=_rounding_error,
    twin="quantize_twin",
)
