"""MEAN: the mean over dimensions other than the batch."""

from __future__ import annotations

import math

import numpy as np

from tflite_export.ir.graph import Operator, Reduction, Tensor
from tflite_export.ir.requantization import (
    mean_in_float32,
    scale_away,
    scale_mean,
    scale_upward,
)
from tflite_export.ir.schema import OperatorSchema, OptionField
from tflite_export.ops import checks, moving, spec

_LARGEST_COUNT = 1 << 16


def _check(operator: Operator, operands: spec.Operands, output: Tensor) -> spec.Shape:
    options = operator.options
    assert isinstance(options, Reduction)
    source, named = checks.operands_of(operands, 2, 2)
    for tensor in (source, output):
        checks.quantized_or_float(tensor)
        checks.require(
            tensor.dtype == output.dtype, f"types {tensor.dtype} and {output.dtype} are mixed"
        )
    checks.require(
        output.dtype != "uint8" and not source.is_constant, "expected an int8 or int16 activation"
    )
    axes = moving.axes_of(named, len(source.shape))
    count = count_of(source, axes)
    checks.require(
        1 <= count <= _LARGEST_COUNT, f"the mean of {count}, expected up to {_LARGEST_COUNT}"
    )
    if output.dtype != "float32":
        ratio = float(source.scale) / float(output.scale)
        checks.require(
            checks.SMALLEST_FACTOR <= ratio < checks.LARGEST_FACTOR,
            f"scale of input over output {ratio}",
        )
    return moving.reduced(source.shape, axes, options.keep_dims)


def count_of(source: Tensor, axes: tuple[int, ...]) -> int:
    """How many integers a mean is of."""
    return math.prod(source.shape[axis] for axis in axes)


def mean_factors(
    source: Tensor, output: Tensor, axes: tuple[int, ...] = (1, 2)
) -> tuple[np.float32, np.float32]:
    """`requantization.mean_in_float32` of an operator's tensors."""
    grids = [(tensor.scale, tensor.zero_point) for tensor in (source, output)]
    return mean_in_float32(grids[0], grids[1], count_of(source, axes))


def is_of_stored_integers(operator: Operator, source: Tensor, axes: tuple[int, ...]) -> bool:
    """Whether built-in kernels sum the integers as they are stored and correct them afterwards."""
    assert isinstance(operator.options, Reduction)
    of_images = len(source.shape) == 4 and axes == (1, 2) and source.dtype != "int16"
    return operator.options.keep_dims and of_images


def stored_factors(source: Tensor, output: Tensor, count: int) -> tuple[float, int]:
    """The factor of such a sum, rounded to float32, and what is added to the scaled sum."""
    shift = np.float32(source.zero_point) * source.scale / output.scale
    shift = shift + np.copysign(np.float32(0.5), shift)
    factor = source.scale / np.float32(np.float32(count) * output.scale)
    return float(factor), output.zero_point - int(shift)


def _reference(step: spec.Step, operands: list[np.ndarray]) -> np.ndarray:
    options, source, output = step.operator.options, step.inputs[0], step.output
    assert isinstance(options, Reduction)
    axes = moving.axes_of(step.inputs[1], len(source.shape))
    sums = operands[0].astype(np.int64).sum(axis=axes, keepdims=options.keep_dims)
    count = count_of(source, axes)
    if step.xnnpack:
        factor, offset = mean_factors(source, output, axes)
        scaled = np.rint(sums.astype(np.float32) * factor + offset).astype(np.int64)
        return step.finish(scaled - output.zero_point)
    if not step.kernels.divides and is_of_stored_integers(step.operator, source, axes):
        real, added = stored_factors(source, output, count)
        scaled = scale_away(sums, np.array([real]))
        if step.kernels.sixteens:
            whole = sums.shape[-1] // 16 * 16
            scaled[..., :whole] = scale_upward(sums[..., :whole], np.array([real]))
        return step.finish(scaled + added - output.zero_point)
    real = float(source.scale) / float(output.scale)
    return step.finish(scale_mean(sums - count * source.zero_point, real, count))


def _norm(step: spec.Step) -> float:
    axes = moving.axes_of(step.inputs[1], len(step.inputs[0].shape))
    return spec.ROUND_UP / math.sqrt(count_of(step.inputs[0], axes))


def _rounding_error(step: spec.Step) -> float:
    """Sum times factor and offset are up to 128 steps of the input, in steps of the output."""
    if step.output.dtype == "int16":
        return 1.0 + spec.FIXED_POINT_ERROR
    largest = 128 * float(step.inputs[0].scale / step.output.scale)
    if step.xnnpack:
        return 0.5 + (2 * largest + 512) * 5 * 2.0**-24
    # The zero point, taken off after the sum was scaled, is rounded by itself.
    return 1.0 + spec.FIXED_POINT_ERROR + (2 * largest + 512) * 5 * 2.0**-24


SPEC = spec.OperatorSpec(
    kind="MEAN",
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
    int16_in=spec.KERNEL_SETS,
    missing_in=(),
    twin="mean_twin",
)
