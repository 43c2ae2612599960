"""DEQUANTIZE: integers to floats."""

from __future__ import annotations

import numpy as np

from tflite_export.ir.affine import dequantize
from tflite_export.ir.graph import NoOptions, Operator, Tensor
from tflite_export.ir.schema import OperatorSchema
from tflite_export.ops import spec
from tflite_export.ops.checks import operands_of, quantized_or_float, require


def _check(operator: Operator, operands: spec.Operands, output: Tensor) -> spec.Shape:
    del operator
    (source,) = operands_of(operands, 1, 1)
    quantized_or_float(source)
    require(source.dtype != "float32" and not source.is_constant, f"from {source.dtype}")
    require(output.dtype == "float32", f"to {output.dtype}")
    return source.shape


def _reference(step: spec.Step, operands: list[np.ndarray]) -> np.ndarray:
    return dequantize(operands[0], step.inputs[0])


SPEC = spec.OperatorSpec(
    kind="DEQUANTIZE",
    schema=OperatorSchema(NoOptions, 38, "DequantizeOptions"),
    check=_check,
    xnnpack=spec.unless_int4_or_int16,
    reference=_reference,
    macs=spec.no_macs,
    keeps=spec.Keeps.NOTHING,
    obstacle=spec.any_type,
    interval=spec.increasing(_reference),
    norm=spec.non_expansive,
    stacked=False,
    several=False,
    rounding_error=spec.exact,
    int16_in=spec.KERNEL_SETS,
    missing_in=(),
    twin="dequantize_twin",
)
