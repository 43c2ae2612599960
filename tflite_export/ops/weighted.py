"""What convolutions and dense layers share: sums of products, a bias, a factor per channel."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from tflite_export.ir.affine import constant_values
from tflite_export.ir.graph import BATCH, Convolution, Tensor
from tflite_export.ir.requantization import (
    Rescale,
    requantization_scale,
    scale_in_float32,
    scale_wide,
    weighted_factors,
)
from tflite_export.ops import checks, spec

Accumulate = Callable[[spec.Step, np.ndarray, np.ndarray], np.ndarray]
"""From a step, centred inputs and weights, both float64, to sums; exact below 2**53."""


def pixels(output: Tensor) -> int:
    """How many entries one sample of a result has."""
    return math.prod(size for size in output.shape[1:] if size != BATCH)


def weights_of(operands: spec.Operands) -> Tensor | None:
    """The weights, if a file of any kind has them."""
    return operands[1] if len(operands) > 1 else None


def check_weights(operands: Sequence[Tensor], output: Tensor, axis: int) -> None:
    """Check types, grids, bias and the room in the accumulator.

    Args:
        operands: input, weights and bias, if there is one.
        output: the result.
        axis: the dimension of the weights that the output channels are on.
    """
    source, weights = operands[0], operands[1]
    channels = weights.shape[axis]
    checks.quantized_or_float(source)
    checks.quantized_or_float(output)
    checks.require(weights.data is not None, "the weights are not a constant")
    if len(operands) == 3:
        bias = operands[2]
        checks.require(
            bias.data is not None and bias.shape == (channels,),
            f"the bias is not a constant of {channels}",
        )
    if source.dtype == "float32":
        checks.require(
            all(tensor.dtype == "float32" for tensor in (*operands, output)),
            "float32 and other types are mixed",
        )
        return
    wide = output.dtype == "int16"
    checks.require(
        source.dtype == output.dtype and output.dtype in ("int8", "int16"),
        f"{source.dtype} in, {output.dtype} out, expected int8 or int16 both",
    )
    checks.require(
        weights.dtype == "int8" or (weights.dtype == "int4" and not wide),
        f"weights of type {weights.dtype} beside {source.dtype} activations",
    )
    grid = weights.quantization
    checks.require(grid is not None, "the weights have no scale")
    if grid is None or weights.data is None:
        return
    checks.require(not grid.zero_point.any(), "the weights' zero point is not 0")
    checks.require(
        grid.scale.size == 1 or grid.axis == axis,
        f"weights have channels on {grid.axis}, not {axis}",
    )
    factors = requantization_scale(source.scale, grid.scale, output.scale)
    checks.require(
        bool(
            np.isfinite(factors).all()
            and (factors > 0).all()
            and (factors < checks.LARGEST_FACTOR).all()
        ),
        f"scales of input * weights / output reach {factors.max()}, kernels take up to "
        f"{checks.LARGEST_FACTOR}",
    )
    magnitudes = np.abs(
        np.moveaxis(weights.data, axis, 0).reshape(channels, -1).astype(np.int64)
    ).sum(axis=1)
    largest = magnitudes * (1 << 15 if wide else 255)
    if len(operands) == 3:
        expected = "int64" if wide else "int32"
        checks.require(
            operands[2].dtype == expected,
            f"bias of type {operands[2].dtype} beside {source.dtype} activations, expected "
            f"{expected}",
        )
        _check_bias_grid(operands[2], source.scale * grid.scale)
        largest = largest + np.abs(np.asarray(operands[2].data).astype(np.int64))
    if wide:
        checks.require(
            int(largest.max()) < 2**47,
            f"sums of up to {largest.max()} do not fit 48 bits; split the layer or make its bias "
            "smaller",
        )
        checks.require(
            bool((largest * factors < 2**31).all()),
            f"sums of up to {largest.max()}, times factors of up to {factors.max():.3g}, do not "
            "fit 32 bits; widen the range of the output",
        )
        return
    checks.require(
        int(largest.max()) < 2**31,
        f"sums of up to {largest.max()} do not fit 32 bits; split the layer or make its bias "
        "smaller",
    )
    checks.require(
        bool((shifted(largest, factors) < 2**31).all()),
        f"sums of up to {largest.max()}, times factors of up to {factors.max():.3g}, do not fit 32 "
        "bits; widen the range of the output",
    )


def shifted(sums: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Sums as fixed-point kernels shift them: to the left by what a factor is above a half."""
    return sums << np.maximum(np.frexp(factors)[1], 0).astype(np.int64)


def _check_bias_grid(bias: Tensor, products: np.ndarray) -> None:
    """The bias counts in units of input scale times weight scale, as kernels assume.

    A bias of 0 has no unit; the converter gives such biases beside int16 others.
    """
    if bias.quantization is None or bias.data is None:
        raise checks.Problem("the bias has no scale")
    checks.require(
        bias.quantization.scale.size in (1, products.size), "the bias has another number of scales"
    )
    close = np.isclose(bias.quantization.scale, products, rtol=1e-3, atol=0.0)
    near = bool((close | (bias.data == 0)).all())
    checks.require(near, "the bias is not on the grid of input scale times weight scale")
    checks.require(not bias.quantization.zero_point.any(), "the bias' zero point is not 0")


def rounding(output: Tensor, narrow: Rescale, wide: Rescale = scale_wide) -> Rescale:
    """How an operator's sums are rescaled where XNNPACK does not take it.

    Args:
        output: the result.
        narrow: the rounding beside int8 activations, whose sums have 32 bits.
        wide: the same beside int16, whose sums have 64.
    """
    return wide if output.dtype == "int16" else narrow


def convolved(
    options: Convolution, source: spec.Shape, window: spec.Shape, channels: int
) -> spec.Shape:
    """The shape of a convolution's result."""
    height = checks.output_size(
        source[1], window[0], options.stride_h, options.dilation_h, options.padding
    )
    width = checks.output_size(
        source[2], window[1], options.stride_w, options.dilation_w, options.padding
    )
    return (source[0], height, width, channels)


def compute(
    step: spec.Step, operands: list[np.ndarray], accumulate: Accumulate, fixed: Rescale
) -> np.ndarray:
    """The operator on one batch.

    Args:
        step: the operator.
        operands: input, weights and bias, if there is one.
        accumulate: its sums.
        fixed: its rounding where XNNPACK does not take it.
    """
    # float64 holds every partial sum of int8 products exactly and is fast in NumPy
    values = operands[0].astype(np.float64) - step.inputs[0].zero_point
    sums = accumulate(step, values, operands[1].astype(np.float64))
    return _requantize(step, sums, operands[2:], fixed)


def _requantize(
    step: spec.Step, sums: np.ndarray, bias: list[np.ndarray], fixed: Rescale
) -> np.ndarray:
    """From sums of products to integers of the output."""
    accumulator = sums.astype(np.int64)
    if bias:
        accumulator = accumulator + bias[0].astype(np.int64)
    grid = step.inputs[1].quantization
    if grid is None:
        raise ValueError(f"the weights {step.inputs[1].name!r} have no scale")
    scales = (step.inputs[0].scale, grid.scale, step.output.scale)
    if step.xnnpack:
        scaled = scale_in_float32(accumulator, requantization_scale(*scales))
    else:
        dense = step.inputs[1].data is not None and step.inputs[1].data.ndim == 2
        factors = weighted_factors(*scales, fixed, dense)
        scaled = fixed(accumulator, np.broadcast_to(factors, accumulator.shape[-1:]))
    return step.finish(scaled)


def accumulator_box(step: spec.Step, boxes: list[spec.Box], accumulate: Accumulate) -> spec.Box:
    """Bound the accumulators, the bias left out: positive weights take the near corner.

    In the form of centre and radius: ``W (l + h) -+ |W| (h - l)`` is twice the bound, all in
    integers that float64 holds exactly.

    Returns:
        float64 integers, smallest and largest.
    """
    zero = step.inputs[0].zero_point
    low, high = (np.asarray(side, np.float64) - zero for side in boxes[0])
    weights = np.asarray(boxes[1][0], np.float64)
    middle = accumulate(step, low + high, weights)
    spread = accumulate(step, high - low, np.abs(weights))
    return (middle - spread) / 2, (middle + spread) / 2


def bound(
    step: spec.Step, boxes: list[spec.Box], accumulate: Accumulate, fixed: Rescale
) -> spec.Box:
    """Bound the result over boxes of the operands; arguments as of `compute`."""
    bias = [boxes[2][0]] if len(boxes) > 2 else []
    low, high = (
        step.typed(_requantize(step, end, bias, fixed))
        for end in accumulator_box(step, boxes, accumulate)
    )
    return low, high


def real_weights(step: spec.Step) -> np.ndarray:
    """The weights times their scales, float64, in the file's layout.

    Raises:
        ValueError: they are not a quantized constant, or a size of the input is open.
    """
    tensor, source = step.inputs[1], step.inputs[0]
    values = constant_values(tensor)
    if any(size < 1 for size in source.shape[1:]):
        raise ValueError(
            f"the input {source.name!r} of {step.operator.kind} has an open size "
            f"{source.shape[1:]}; fix it first"
        )
    return values


def rounding_error(step: spec.Step) -> float:
    """One rounding in float32, or two in fixed point; beside int16 a multiplier of 15 bits."""
    if step.output.dtype == "int16":
        return 0.5 + spec.WIDE_ERROR
    return 0.5 + (spec.FLOAT32_ERROR if step.xnnpack else spec.FIXED_POINT_ERROR)
