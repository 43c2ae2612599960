"""MUL: the product of two operands, of which one may repeat along the other."""

from __future__ import annotations

import math

import numpy as np

from tflite_export.ir.graph import INTEGER_RANGES, Elementwise, Operator, Tensor
from tflite_export.ir.requantization import requantization_scale, scale_away, scale_in_float32
from tflite_export.ir.schema import OperatorSchema, activation_field
from tflite_export.ops import broadcasting, checks, spec

_RATIOS = {
    "int8": (checks.SMALLEST_FACTOR, checks.LARGEST_FACTOR),
    "int16": (2.0**-30, 1.0),
}
"""What the product of the operands' steps over the result's must be: at least, and less than."""


def _check(operator: Operator, operands: spec.Operands, output: Tensor) -> spec.Shape:
    assert isinstance(operator.options, Elementwise)
    present = broadcasting.check_pair(operands, output)
    checks.check_activation(operator.options)
    checks.require(output.dtype != "uint8", "uint8 operands")
    if output.dtype != "float32":
        left, right = present
        ratio = float(left.scale) * float(right.scale) / float(output.scale)
        least, most = _RATIOS[output.dtype]
        checks.require(least <= ratio < most, f"scale of the product over output: {ratio}")
    return broadcasting.broadcast(present)


def _reference(step: spec.Step, operands: list[np.ndarray]) -> np.ndarray:
    left, right = (
        v.astype(np.int64) - t.zero_point for v, t in zip(operands, step.inputs, strict=True)
    )
    scales = [tensor.scale for tensor in step.inputs]
    factor = requantization_scale(scales[0], scales[1].reshape(1), step.output.scale)
    scale = scale_in_float32 if step.xnnpack else scale_away
    return step.finish(scale(left * right, factor))


def _interval(step: spec.Step, boxes: list[spec.Box]) -> spec.Box:
    """The smallest and the largest of the products of ends; a constant has one end."""
    ends = [box[:1] if t.is_constant else box for t, box in zip(step.inputs, boxes, strict=True)]
    products = [step.typed(_reference(step, [a, b])) for a in ends[0] for b in ends[1]]
    return np.minimum.reduce(products), np.maximum.reduce(products)


def _norm(step: spec.Step) -> float:
    """The largest factor in magnitude that an operand meets, times how often it is repeated."""
    slopes = []
    for operand, factor in zip(step.inputs, reversed(step.inputs), strict=True):
        if not operand.is_constant:
            root = math.sqrt(broadcasting.repeats(operand, step.output))
            slopes.append(_largest(factor) * root)
    return max(slopes) * spec.ROUND_UP


def _largest(factor: Tensor) -> float:
    """The largest magnitude that a factor can have, in real units."""
    values = INTEGER_RANGES[factor.dtype] if factor.data is None else factor.data
    magnitudes = np.abs(np.asarray(values, np.float64) - factor.zero_point)
    return float(magnitudes.max()) * float(factor.scale)


def _rounding_error(step: spec.Step) -> float:
    return 0.5 + (spec.FLOAT32_ERROR if step.xnnpack else spec.FIXED_POINT_ERROR)


SPEC = spec.OperatorSpec(
    kind="MUL",
    schema=OperatorSchema(Elementwise, 21, "MulOptions", (activation_field(0),)),
    check=_check,
    xnnpack=spec.unless_int4_or_int16,
    reference=_reference,
    macs=spec.no_macs,
    keeps=spec.Keeps.NOTHING,
    obstacle=spec.integers_only,
    interval=_interval,
    norm=_norm,
    stacked=False,
    several=False,
    rounding_error=_rounding_error,
    int16_in=spec.KERNEL_SETS,
    missing_in=(),
    twin="mul_twin",
)
