"""L2_NORMALIZATION: each vector of the last axis over its length, in units of 1/128."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tflite_export.ir.graph import INTEGER_RANGES, Operator, Options, Tensor
from tflite_export.ir.schema import OperatorSchema, activation_field
from tflite_export.ops import checks, gemmlowp, spec

GRID = (1 / 128, 0)
"""Scale and zero point of the result."""
UNITS = 128
MOST_ENTRIES = 1 << 15
"""Sums of more squares might not have room in 32 bits."""
_SLACK = 0.26
"""How far before its last rounding a result may be from the real one: a quarter, and the error of
the root, below a thousandth."""


@dataclass(frozen=True)
class L2Normalization(Options):
    """Options of ``L2_NORMALIZATION``: the fused activation."""

    activation: str = "NONE"


def _check(operator: Operator, operands: spec.Operands, output: Tensor) -> spec.Shape:
    (source,) = checks.operands_of(operands, 1, 1)
    assert isinstance(operator.options, L2Normalization)
    checks.check_activation(operator.options, ("NONE",))
    checks.require(not source.is_constant, "the operand is a constant")
    for tensor in (source, output):
        checks.require(tensor.dtype == "int8", f"type {tensor.dtype}; only int8 is known")
        checks.quantized_or_float(tensor)
    found = (output.scale, output.zero_point)
    checks.require(found == GRID, "the result must have scale 1/128 and zero point 0")
    checks.require(2 <= len(source.shape) <= 4, f"{len(source.shape)} dimensions, expected 2 to 4")
    checks.require(
        source.shape[-1] <= MOST_ENTRIES,
        f"vectors of {source.shape[-1]} entries, expected at most {MOST_ENTRIES}",
    )
    return source.shape


def units(centred: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """Return entries over the length of their vector, in units of 1/128, not clamped.

    Args:
        centred: int64 entries, counted from the zero point.
        sums: of the squares of a vector, of a shape that repeats along it.
    """
    multiplier, shift = gemmlowp.inverse_root(sums)
    shift = shift + 7
    left, right = np.maximum(shift, 0), np.maximum(-shift, 0)
    return gemmlowp.rounded_shift(gemmlowp.product(centred << left, multiplier), right)


def _reference(step: spec.Step, operands: list[np.ndarray]) -> np.ndarray:
    centred = operands[0].astype(np.int64) - step.inputs[0].zero_point
    return step.finish(units(centred, (centred * centred).sum(axis=-1, keepdims=True)))


def _interval(step: spec.Step, boxes: list[spec.Box]) -> spec.Box:
    """Bound each entry: largest where it is high and all others are small.

    Real arithmetic, and the error of the kernels to spare, but for a vector that is known.
    """
    low, high = (np.asarray(side, np.float64) - step.inputs[0].zero_point for side in boxes[0])
    most = np.maximum(low * low, high * high)
    least = np.where((low <= 0) & (high >= 0), 0, np.minimum(low * low, high * high))
    around_most, around_least = (s.sum(-1, keepdims=True) - s for s in (most, least))
    ends = []
    for end, near, far in ((low, around_most, around_least), (high, around_least, around_most)):
        length = np.sqrt(end * end + np.where(end >= 0, near, far))
        ends.append(UNITS * end / np.where(length == 0, 1, length))
    lowest, highest = np.ceil(ends[0] - 0.5 - _SLACK), np.floor(ends[1] + 0.5 + _SLACK)
    span = INTEGER_RANGES["int8"]
    # A vector of which every entry is known has one result.
    known = (low == high).all(axis=-1, keepdims=True)
    exact = _reference(step, [boxes[0][0]])
    lowest, highest = (np.where(known, exact, np.clip(end, *span)) for end in (lowest, highest))
    return step.typed(lowest), step.typed(highest)


SPEC = spec.OperatorSpec(
    kind="L2_NORMALIZATION",
    schema=OperatorSchema(L2Normalization, 12, "L2NormOptions", (activation_field(0),)),
    check=_check,
    xnnpack=lambda inputs, output: False,
    reference=_reference,
    macs=lambda operands, output: int(np.prod(output.shape[1:])),
    keeps=spec.Keeps.NOTHING,
    obstacle=spec.integers_only,
    interval=_interval,
    # Directions of vectors x and y are |x - y| / sqrt(|x| |y|) apart at most, and no vector of
    # integers but 0 is shorter than one step.
    norm=lambda step: spec.ROUND_UP / float(step.inputs[0].scale),
    stacked=False,
    several=False,
    # Half a step of rounding, and one where the largest value has no integer.
    rounding_error=lambda step: 1.5 + _SLACK,
    int16_in=(),
    missing_in=(),
    twin="l2_normalization_twin",
)
