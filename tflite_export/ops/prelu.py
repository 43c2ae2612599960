"""PRELU: what is negative times a slope for each entry, of which a constant may repeat."""

from __future__ import annotations

import numpy as np

from tflite_export.ir.graph import NoOptions, Operator, Tensor
from tflite_export.ir.requantization import scale_away
from tflite_export.ir.schema import OperatorSchema
from tflite_export.ops import broadcasting, checks, spec
from tflite_export.ops.tabulated import check_steps


def _check(operator: Operator, operands: spec.Operands, output: Tensor) -> spec.Shape:
    del operator
    source, slopes = checks.operands_of(operands, 2, 2)
    check_steps(source, output, (checks.SMALLEST_FACTOR, checks.LARGEST_FACTOR))
    checks.require(
        slopes.is_constant and slopes.dtype == "int8",
        f"the slopes {slopes.name!r} are no constant of int8",
    )
    checks.quantized_or_float(slopes)
    shape = broadcasting.broadcast([source, slopes])
    checks.require(shape == source.shape, f"slopes of shape {slopes.shape} for {source.shape}")
    factor = factors(source, slopes, output)[1]
    checks.require(
        checks.SMALLEST_FACTOR <= factor < checks.LARGEST_FACTOR,
        f"scale of the negative products over output: {factor}",
    )
    return shape


def factors(source: Tensor, slopes: Tensor, output: Tensor) -> tuple[float, float]:
    """Steps of the result for a step of the operand above 0, and for a step of a product below.

    As kernels compute them, each step rounded to float32.
    """
    above = source.scale / output.scale
    return float(above), float(np.float32(source.scale * slopes.scale) / output.scale)


def _reference(step: spec.Step, operands: list[np.ndarray]) -> np.ndarray:
    source, constant = step.inputs
    values = operands[0].astype(np.int64) - source.zero_point
    slopes = operands[1].astype(np.int64) - constant.zero_point
    above, below = (np.array([f]) for f in factors(source, constant, step.output))
    positive = scale_away(values, above)
    return step.finish(np.where(values >= 0, positive, scale_away(values * slopes, below)))


def _interval(step: spec.Step, boxes: list[spec.Box]) -> spec.Box:
    """Above 0 and below, it rises or falls throughout: so at an end, at 0 or just below."""
    (low, high), (slopes, _) = boxes
    zero = step.inputs[0].zero_point
    middle = [np.clip(at, low.astype(np.int64), high) for at in (zero, zero - 1)]
    found = [step.typed(_reference(step, [at, slopes])) for at in (low, high, *middle)]
    return np.minimum.reduce(found), np.maximum.reduce(found)


def _norm(step: spec.Step) -> float:
    """One, or the largest slope in magnitude."""
    slopes = step.inputs[1]
    largest = np.abs(np.asarray(slopes.data, np.float64) - slopes.zero_point).max()
    return max(1.0, float(largest) * float(slopes.scale)) * spec.ROUND_UP


SPEC = spec.OperatorSpec(
    kind="PRELU",
    schema=OperatorSchema(NoOptions, 0, "NONE", version=1),
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
    rounding_error=lambda step: 0.5 + spec.FIXED_POINT_ERROR,
    int16_in=(),
    missing_in=(),
    twin="prelu_twin",
)
