"""MEAN: the mean over height and width of an checks.image, which are left out of the result."""

from __future__ import annotations

import math

import numpy as np

from tflite_export.ir.graph import Operator, Reduction, Tensor
from tflite_export.ir.requantization import mean_in_float32, scale_mean
from tflite_export.ir.schema import OperatorSchema, OptionField
from tflite_export.ops import checks, spec

_LARGEST_COUNT = 1 << 16


def _check(operator: Operator, operands: spec.Operands, output: Tensor) -> spec.Shape:
    options = operator.options
    assert isinstance(options, Reduction)
    source, axes = checks.operands_of(operands, 2, 2)
    shape = checks.image(source)
    for tensor in (source, output):
        checks.quantized_or_float(tensor)
        checks.require(
            tensor.dtype == output.dtype, f"types {tensor.dtype} and {output.dtype} are mixed"
        )
    checks.require(
        output.dtype != "uint8" and not source.is_constant, "expected an int8 activation"
    )
    if axes.data is None or axes.dtype != "int32" or sorted(axes.data.reshape(-1)) != [1, 2]:
        raise checks.Problem("the axes are not the constant (1, 2)")
    checks.require(
        not options.keep_dims, "kept dimensions, for which built-in kernels round otherwise"
    )
    count = shape[1] * shape[2]
    checks.require(
        1 <= count <= _LARGEST_COUNT, f"the mean of {count}, expected up to {_LARGEST_COUNT}"
    )
    if output.dtype == "int8":
        ratio = float(source.scale) / float(output.scale)
        checks.require(
            checks.SMALLEST_FACTOR <= ratio < checks.LARGEST_FACTOR,
            f"scale of input over output {ratio}",
        )
    return (shape[0], shape[3])


def mean_factors(source: Tensor, output: Tensor) -> tuple[np.float32, np.float32]:
    """`rounding.mean_in_float32` of an operator's tensors: a mean over height and width."""
    count = source.shape[1] * source.shape[2]
    grids = [(tensor.scale, tensor.zero_point) for tensor in (source, output)]
    return mean_in_float32(grids[0], grids[1], count)


def _reference(step: spec.Step, operands: list[np.ndarray]) -> np.ndarray:
    source, output = step.inputs[0], step.output
    sums = operands[0].astype(np.int64).sum(axis=(1, 2))
    if step.xnnpack:
        factor, offset = mean_factors(source, output)
        scaled = np.rint(sums.astype(np.float32) * factor + offset).astype(np.int64)
        return step.finish(scaled - output.zero_point)
    count = source.shape[1] * source.shape[2]
    real = float(source.scale) / float(output.scale)
    return step.finish(scale_mean(sums - count * source.zero_point, real, count))


def _norm(step: spec.Step) -> float:
    return spec.ROUND_UP / math.sqrt(math.prod(step.inputs[0].shape[1:3]))


def _rounding_error(step: spec.Step) -> float:
    """Sum times factor and offset are up to 128 steps of the input, in steps of the output."""
    largest = 128 * float(step.inputs[0].scale / step.output.scale)
    return 0.5 + ((2 * largest + 512) * 5 * 2.0**-24 if step.xnnpack else spec.FIXED_POINT_ERROR)


SPEC = spec.OperatorSpec(
    kind="MEAN",
    schema=OperatorSchema(Reduction, 27, "ReducerOptions", (OptionField("keep_dims", 0, "bool"),)),
    check=_check,
    xnnpack=spec.unless_int4,
    reference=_reference,
    macs=spec.no_macs,
    keeps=spec.Keeps.NOTHING,
    obstacle=spec.integers_only,
    interval=spec.increasing(_reference),
    norm=_norm,
    stacked=False,
    several=False,
    rounding_error=_rounding_error,
    twin="mean_twin",
)
