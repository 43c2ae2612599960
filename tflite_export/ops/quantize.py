"""QUANTIZE: floats onto a grid, or the integers of one grid onto another (requantization)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tflite_export.ir.affine import quantize, quantize_by_division
from tflite_export.ir.graph import INTEGER_RANGES, NoOptions, Operator, Tensor
from tflite_export.ir.requantization import scale_away, scale_upward
from tflite_export.ir.schema import OperatorSchema
from tflite_export.ops import checks, spec

UNIT = 256
"""XNNPACK multiplies by whole multiples of 1/256."""
LANES = 16
"""Entries of a vector of the built-in kernels."""
_LARGEST = 128.0


def ratio(source: Tensor, output: Tensor) -> float:
    """Return how many steps of the output a step of the source is."""
    return float(source.scale) / float(output.scale)


def whole_ratio(source: Tensor, output: Tensor) -> int:
    """Return the same in whole multiples of 1 / `UNIT`, as XNNPACK rounds it."""
    return int(np.rint(np.float32(UNIT) * (source.scale / output.scale)))


def _check(operator: Operator, operands: spec.Operands, output: Tensor) -> spec.Shape:
    del operator
    (source,) = checks.operands_of(operands, 1, 1)
    for tensor in (source, output):
        checks.quantized_or_float(tensor)
    types = {source.dtype, output.dtype}
    checks.require(
        output.dtype != "float32" and not source.is_constant and types != {"int16", "uint8"},
        f"{source.dtype} to {output.dtype}",
    )
    if source.dtype != "float32":
        checks.require(
            checks.SMALLEST_FACTOR <= ratio(source, output) <= checks.LARGEST_FACTOR,
            f"a step of the source is {ratio(source, output):.3g} steps of the result; expected "
            f"{checks.SMALLEST_FACTOR:.3g} to {checks.LARGEST_FACTOR:g}",
        )
    return source.shape


def _xnnpack(inputs: Sequence[Tensor], output: Tensor) -> bool:
    (source,) = inputs
    if "int16" in (source.dtype, output.dtype):
        return False
    if source.dtype == "float32":
        return True
    in_range = 1 / UNIT <= np.float32(source.scale / output.scale) <= _LARGEST
    return source.dtype == output.dtype and bool(in_range)


def in_vectors(kernels: spec.KernelSet, source: Tensor, output: Tensor) -> bool:
    """Whether the kernels change the grid of sixteen integers at a time: of 8 bits only."""
    return kernels.sixteens and "int16" not in (source.dtype, output.dtype)


def _reference(step: spec.Step, operands: list[np.ndarray]) -> np.ndarray:
    (source,) = step.inputs
    if source.dtype == "float32":
        rounded = quantize_by_division if step.kernels.divides else quantize
        return rounded(operands[0], step.output)
    values = operands[0].astype(np.int64) - source.zero_point
    if step.xnnpack:
        whole = whole_ratio(source, step.output)
        return step.finish((values * whole + UNIT // 2) // UNIT)
    factors = np.array([ratio(source, step.output)])
    scaled = scale_away(values, factors)
    if in_vectors(step.kernels, source, step.output):
        inside = np.arange(values.size) < values.size // LANES * LANES
        scaled = np.where(inside.reshape(values.shape), scale_upward(values, factors), scaled)
    return step.finish(scaled)


def _interval(step: spec.Step, boxes: list[spec.Box]) -> spec.Box:
    """How an entry is rounded depends on its place in the batch: take the worse of both ways."""
    (source,) = step.inputs
    vectors = in_vectors(step.kernels, source, step.output)
    if source.dtype == "float32" or step.xnnpack or not vectors:
        return spec.increasing(_reference)(step, boxes)
    factors = np.array([ratio(source, step.output)])
    low, high = (box.astype(np.int64) - source.zero_point for box in boxes[0])
    # Of the two roundings the one upward is never the smaller.
    ends = scale_away(low, factors), scale_upward(high, factors)
    return step.typed(step.finish(ends[0])), step.typed(step.finish(ends[1]))


def _norm(step: spec.Step) -> float:
    (source,) = step.inputs
    if source.dtype == "float32" or not step.xnnpack:
        return 1.0
    return whole_ratio(source, step.output) / UNIT / ratio(source, step.output) * spec.ROUND_UP


def _rounding_error(step: spec.Step) -> float:
    (source,) = step.inputs
    if source.dtype == "float32":
        low, high = INTEGER_RANGES[step.output.dtype]
        return 0.5 + spec.FLOAT32_ERROR * (high - low + 1) / 256
    real = ratio(source, step.output)
    if real == 1:
        return 0.0
    if not step.xnnpack:
        return 0.5 + spec.FIXED_POINT_ERROR
    return 0.5 + 255 * abs(whole_ratio(source, step.output) / UNIT - real)


SPEC = spec.OperatorSpec(
    kind="QUANTIZE",
    schema=OperatorSchema(NoOptions, 89, "QuantizeOptions"),
    check=_check,
    xnnpack=_xnnpack,
    reference=_reference,
    macs=spec.no_macs,
    keeps=spec.Keeps.NOTHING,
    obstacle=spec.any_type,
    interval=_interval,
    norm=_norm,
    stacked=False,
    several=False,
    rounding_error=_rounding_error,
    # Those of 2.14 have none from int8, and round some floats to the next integer.
    int16_in=("xnnpack", "builtin", "reference"),
    missing_in=(),
    twin="quantize_twin",
)
