"""CONV_2D: a 2-D convolution, in groups of channels if any, a bias and a factor per channel."""

from __future__ import annotations

import math

import numpy as np

from tflite_export.ir.graph import Convolution, Operator, Tensor
from tflite_export.ir.requantization import Rescale, scale_away
from tflite_export.ir.schema import OperatorSchema, OptionField, activation_field, window_fields
from tflite_export.ops import spec, weighted
from tflite_export.ops.checks import check_activation, image, operands_of, require
from tflite_export.ops.windows import windows


def _check(operator: Operator, operands: spec.Operands, output: Tensor) -> spec.Shape:
    options = operator.options
    assert isinstance(options, Convolution)
    # LiteRT has no convolution without a bias; a depthwise one ends the process
    present = operands_of(operands, 3, 3)
    source, kernel = image(present[0]), image(present[1])
    groups = source[3] // kernel[3] if kernel[3] else 0
    require(
        groups >= 1 and source[3] == groups * kernel[3] and kernel[0] % groups == 0,
        f"{kernel[0]} kernels for {kernel[3]} channels, input has {source[3]}",
    )
    require(groups == 1 or present[1].dtype != "int4", "int4 weights of a grouped convolution")
    check_activation(options)
    weighted.check_weights(present, output, 0)
    return weighted.convolved(options, source, kernel[1:3], kernel[0])


def groups_of(source: Tensor, weights: Tensor) -> int:
    """How many groups of channels are convolved by themselves."""
    return source.shape[3] // weights.shape[3]


def rounding(step: spec.Step) -> Rescale:
    """The rounding without XNNPACK; the built-in kernels leave groups to the reference ones."""
    grouped = groups_of(*step.inputs[:2]) > 1
    return weighted.rounding(step.output, scale_away if grouped else step.kernels.convolution)


def _accumulate(step: spec.Step, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    options = step.operator.options
    assert isinstance(options, Convolution)
    view = windows(values, (weights.shape[1], weights.shape[2]), options, 0)
    channels = weights.shape[3]
    groups = values.shape[3] // channels
    sums = []
    for group, kernel in enumerate(np.split(weights, groups)):
        own = view[:, :, :, group * channels : (group + 1) * channels]
        total = np.zeros((*view.shape[:3], kernel.shape[0]))
        for row, column in np.ndindex(*weights.shape[1:3]):
            total += own[..., row, column] @ kernel[:, row, column].T
        sums.append(total)
    return np.concatenate(sums, axis=3)


def _reference(step: spec.Step, operands: list[np.ndarray]) -> np.ndarray:
    return weighted.compute(step, operands, _accumulate, rounding(step))


def _macs(operands: spec.Operands, output: Tensor) -> int:
    kernel = weighted.weights_of(operands)
    return 0 if kernel is None else weighted.pixels(output) * math.prod(kernel.shape[1:])


def _interval(step: spec.Step, boxes: list[spec.Box]) -> spec.Box:
    return weighted.bound(step, boxes, _accumulate, rounding(step))


def _norm(step: spec.Step) -> spec.LinearPart:
    options = step.operator.options
    assert isinstance(options, Convolution)
    kernel = weighted.real_weights(step).transpose(1, 2, 3, 0)
    return spec.LinearPart(
        kernel,
        step.inputs[0].shape[1:],  # type: ignore[arg-type]
        (options.stride_h, options.stride_w),
        options.padding.lower(),
        (options.dilation_h, options.dilation_w),
        groups_of(*step.inputs[:2]),
    )


SPEC = spec.OperatorSpec(
    kind="CONV_2D",
    schema=OperatorSchema(
        Convolution,
        1,
        "Conv2DOptions",
        (
            *window_fields(0),
            activation_field(3),
            OptionField("dilation_w", 4, "int32", 1),
            OptionField("dilation_h", 5, "int32", 1),
        ),
        version=3,
        int4_version=7,
        ignored=(6,),
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
    twin="conv_2d_twin",
)
