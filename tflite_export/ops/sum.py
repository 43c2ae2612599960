"""SUM: the sum over dimensions other than the batch."""

from __future__ import annotations

import math

import numpy as np

from tflite_export.ir.graph import Operator, Reduction, Tensor
from tflite_export.ir.requantization import scale_once
from tflite_export.ir.schema import OperatorSchema, OptionField
from tflite_export.ops import checks, mean, moving, spec

_MOST_TERMS = 1 << 16


def _check(operator: Operator, operands: spec.Operands, output: Tensor) -> spec.Shape:
    options = operator.options
    assert isinstance(options, Reduction)
    source, named = checks.operands_of(operands, 2, 2)
    for tensor in (source, output):
        checks.require(tensor.dtype == "int8", f"type {tensor.dtype}; only int8 is known")
        checks.quantized_or_float(tensor)
    checks.require(not source.is_constant, "the operand is a constant")
    axes = moving.axes_of(named, len(source.shape))
    terms = mean.count_of(source, axes)
    checks.require(1 <= terms <= _MOST_TERMS, f"{terms} terms, expected up to {_MOST_TERMS}")
    ratio = float(source.scale) / float(output.scale)
    checks.require(
        checks.SMALLEST_FACTOR <= ratio < checks.LARGEST_FACTOR,
        f"scale of input over output {ratio}",
    )
    return moving.reduced(source.shape, axes, options.keep_dims)


def sum_in_float32(source: Tensor, output: Tensor, terms: int) -> tuple[np.float32, np.float32]:
    """XNNPACK's factor of the sum of stored integers, and what is added to the product."""
    factor = np.float32(source.scale / output.scale)
    return factor, np.float32(output.zero_point) - np.float32(terms * source.zero_point) * factor


def _reference(step: spec.Step, operands: list[np.ndarray]) -> np.ndarray:
    options, source, output = step.operator.options, step.inputs[0], step.output
    assert isinstance(options, Reduction)
    axes = moving.axes_of(step.inputs[1], len(source.shape))
    terms = mean.count_of(source, axes)
    sums = operands[0].astype(np.int64).sum(axis=axes, keepdims=options.keep_dims)
    if step.xnnpack:
        factor, offset = sum_in_float32(source, output, terms)
        scaled = np.rint(sums.astype(np.float32) * factor + offset).astype(np.int64)
        return step.finish(scaled - output.zero_point)
    real = float(source.scale) / float(output.scale)
    return step.finish(scale_once(sums - terms * source.zero_point, np.array([real])))


def _terms(step: spec.Step) -> int:
    axes = moving.axes_of(step.inputs[1], len(step.inputs[0].shape))
    return mean.count_of(step.inputs[0], axes)


def _norm(step: spec.Step) -> float:
    return spec.ROUND_UP * math.sqrt(_terms(step))


def _rounding_error(step: spec.Step) -> float:
    """One rounding, and in float32 the digits that sum and offset lose."""
    if not step.xnnpack:
        return 0.5 + spec.FIXED_POINT_ERROR
    largest = 128 * _terms(step) * float(step.inputs[0].scale / step.output.scale)
    return 0.5 + (2 * largest + 512) * 5 * 2.0**-24


SPEC = spec.OperatorSpec(
    kind="SUM",
    schema=OperatorSchema(Reduction, 27, "ReducerOptions", (OptionField("keep_dims", 0, "bool"),)),
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
    # The reference kernel takes int8 for uint8; of the kernels of 2.14 nothing is known.
    missing_in=("reference", "builtin-2.14", "reference-2.14"),
    twin="sum_twin",
)
