"""LEAKY_RELU: the positive integers on the output's grid, the negative ones times a slope."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tflite_export.ir.graph import Operator, Options, Tensor
from tflite_export.ir.requantization import scale_away
from tflite_export.ir.schema import OperatorSchema, OptionField
from tflite_export.ops import checks, spec

UNIT = 256
"""XNNPACK multiplies by whole multiples of 1/256."""
_LARGEST = 128.0


@dataclass(frozen=True)
class LeakyRelu(Options):
    """Options of ``LEAKY_RELU``: the slope below 0."""

    alpha: float = 0.0


def real_factors(operator: Operator, source: Tensor, output: Tensor) -> tuple[float, float]:
    """Return steps of the output a step of the source: above 0 and below, as float32 gives them."""
    assert isinstance(operator.options, LeakyRelu)
    sloped = np.float32(source.scale) * np.float32(operator.options.alpha)
    return (
        float(np.float32(source.scale) / np.float32(output.scale)),
        float(sloped / np.float32(output.scale)),
    )


def whole_factors(operator: Operator, source: Tensor, output: Tensor) -> tuple[int, int]:
    """Return the same in whole multiples of 1 / `UNIT`, as XNNPACK rounds them."""
    assert isinstance(operator.options, LeakyRelu)
    above = np.float32(source.scale) / np.float32(output.scale)
    below = above * np.float32(operator.options.alpha)
    return int(np.rint(UNIT * above)), int(np.rint(UNIT * below))


def _check(operator: Operator, operands: spec.Operands, output: Tensor) -> spec.Shape:
    (source,) = checks.operands_of(operands, 1, 1)
    checks.require(not source.is_constant, "the operand is a constant")
    for tensor in (source, output):
        checks.quantized_or_float(tensor)
    checks.require(source.dtype == output.dtype, f"types {source.dtype} and {output.dtype} differ")
    if output.dtype == "float32":
        return source.shape
    checks.require(output.dtype == "int8", f"type {output.dtype}; only int8 is known")
    for factor, side in zip(
        real_factors(operator, source, output), ("above", "below"), strict=True
    ):
        checks.require(
            1 / UNIT <= factor <= _LARGEST,
            f"a step of the source {side} 0 is {factor} steps of the output, and XNNPACK takes "
            f"1/{UNIT} to {_LARGEST:g}",
        )
    return source.shape


def _reference(step: spec.Step, operands: list[np.ndarray]) -> np.ndarray:
    (source,) = step.inputs
    values = operands[0].astype(np.int64) - source.zero_point
    if step.xnnpack:
        above, below = whole_factors(step.operator, source, step.output)
        half = UNIT // 2
        return step.finish((values * np.where(values >= 0, above, below) + half) // UNIT)
    scaled = [
        scale_away(values, np.array([factor], np.float64))
        for factor in real_factors(step.operator, source, step.output)
    ]
    return step.finish(np.where(values >= 0, *scaled))


def _norm(step: spec.Step) -> float:
    """The larger slope that the integers have, in real units."""
    (source,) = step.inputs
    if step.xnnpack:
        factors = [f / UNIT for f in whole_factors(step.operator, source, step.output)]
    else:
        factors = [*real_factors(step.operator, source, step.output)]
    return max(factors) * float(step.output.scale) / float(source.scale) * spec.ROUND_UP


def _rounding_error(step: spec.Step) -> float:
    return 0.5 + (0.0 if step.xnnpack else spec.FIXED_POINT_ERROR)


SPEC = spec.OperatorSpec(
    kind="LEAKY_RELU",
    schema=OperatorSchema(LeakyRelu, 75, "LeakyReluOptions", (OptionField("alpha", 0, "float32"),)),
    check=_check,
    xnnpack=spec.unless_int4_or_int16,
    reference=_reference,
    macs=spec.no_macs,
    keeps=spec.Keeps.NOTHING,
    obstacle=spec.integers_only,
    interval=spec.increasing(_reference),
    norm=_norm,
    stacked=False,
    several=False,
    rounding_error=_rounding_error,
    int16_in=(),
    missing_in=(),
    twin="leaky_relu_twin",
)
