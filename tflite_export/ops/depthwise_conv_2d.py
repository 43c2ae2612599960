"""DEPTHWISE_CONV_2D: each channel convolved by itself, with a bias and a factor per channel."""

from __future__ import annotations

import math

import numpy as np

from tflite_export.ir.graph import Convolution, Operator, Tensor
from tflite_export.ir.schema import OperatorSchema, OptionField, activation_field, window_fields
from tflite_export.ops import spec, weighted
from tflite_export.ops.checks import check_activation, image, operands_of, require
from tflite_export.ops.windows import windows


def _check(operator: Operator, operands: spec.Operands, output: Tensor) -> spec.Shape:
    options = operator.options
    assert isinstance(options, Convolution)
    present = operands_of(operands, 3, 3)
    source, kernel = image(present[0]), image(present[1])
    require(kernel[0] == 1, f"depthwise kernel of shape {kernel}, the first size must be 1")
    multiplier = options.depth_multiplier
    require(
        multiplier >= 1 and kernel[3] == source[3] * multiplier,
        f"{kernel[3]} kernels for {source[3]} channels times {multiplier}",
    )
    check_activation(options)
    weighted.check_weights(present, output, 3)
    return weighted.convolved(options, source, kernel[1:3], kernel[3])


def _accumulate(step: spec.Step, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    options = step.operator.options
    assert isinstance(options, Convolution)
    view = windows(values, (weights.shape[1], weights.shape[2]), options, 0)
    kernel = weights[0].reshape(*weights.shape[1:3], values.shape[3], -1)
    sums = np.zeros((*view.shape[:4], kernel.shape[3]))
    for row, column in np.ndindex(*weights.shape[1:3]):
        sums += view[..., row, column, None] * kernel[row, column]
    return sums.reshape(*view.shape[:3], -1)


def _reference(step: spec.Step, operands: list[np.ndarray]) -> np.ndarray:
    fixed = weighted.rounding(step.output, step.kernels.depthwise)
    return weighted.compute(step, operands, _accumulate, fixed)


def _macs(operands: spec.Operands, output: Tensor) -> int:
    kernel = weighted.weights_of(operands)
    return 0 if kernel is None else weighted.pixels(output) * math.prod(kernel.shape[1:-1])


def _interval(step: spec.Step, boxes: list[spec.Box]) -> spec.Box:
    fixed = weighted.rounding(step.output, step.kernels.depthwise)
    return weighted.bound(step, boxes, _accumulate, fixed)


def _norm(step: spec.Step) -> spec.LinearPart:
    options = step.operator.options
    assert isinstance(options, Convolution)
    weights = weighted.real_weights(step)
    return spec.LinearPart(
        weights[0].reshape(*weights.shape[1:3], 1, -1),
        step.inputs[0].shape[1:],  # type: ignore[arg-type]
        (options.stride_h, options.stride_w),
        options.padding.lower(),
        (options.dilation_h, options.dilation_w),
        step.inputs[0].shape[3],
    )


SPEC = spec.OperatorSpec(
    kind="DEPTHWISE_CONV_2D",
    schema=OperatorSchema(
        Convolution,
        2,
        "DepthwiseConv2DOptions",
        (
            *window_fields(0),
            OptionField("depth_multiplier", 3, "int32"),
            activation_field(4),
            OptionField("dilation_w", 5, "int32", 1),
            OptionField("dilation_h", 6, "int32", 1),
        ),
        version=3,
        int4_version=6,
    ),
    check=_check,
    xnnpack=spec.unless_int4_or_int16,
    reference=_reference,
    macs=_macs,
    keeps=spec.Keeps.NOTHING,
    obstacle=spec.integers_only,
    interval=_interval,
    norm=_norm,
    stacked=False,
    several=False,
    rounding_error=weighted.rounding_error,
    int16_in=spec.KERNEL_SETS,
    missing_in=(),
    twin="depthwise_conv_2d_twin",
)
