"""TRANSPOSE_CONV: the adjoint of a 2-D convolution, with a bias and a factor per channel.

The size of the result is a constant operand, batch included, and kernels write beyond their memory
where the batch is another one. So the batch is fixed at 1, and several images go one by one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from tflite_export.ir.graph import BATCH, Operator, Options, Tensor
from tflite_export.ir.schema import OperatorSchema, activation_field, window_fields
from tflite_export.ops import spec, weighted
from tflite_export.ops.checks import check_activation, image, operands_of, output_size, require


@dataclass(frozen=True)
class TransposedConvolution(Options):
    """Options of ``TRANSPOSE_CONV``; those of the convolution whose adjoint it is."""

    padding: str = "VALID"
    stride_w: int = 1
    stride_h: int = 1
    activation: str = "NONE"


def as_weighted(step: spec.Step) -> spec.Step:
    """The operator with its operands in the order of other convolutions, the size left out."""
    _, weights, source, *bias = step.inputs
    return replace(step, inputs=[source, weights, *bias])


def _cut(step: spec.Step) -> tuple[int, int]:
    """Rows above and columns left of the result that are computed and cut off."""
    options = step.operator.options
    assert isinstance(options, TransposedConvolution)
    source, weights = step.inputs[:2]
    if options.padding == "VALID":
        return 0, 0
    top, left = (
        max((source.shape[i] - 1) * stride + weights.shape[i] - step.output.shape[i], 0) // 2
        for i, stride in ((1, options.stride_h), (2, options.stride_w))
    )
    return top, left


def _check(operator: Operator, operands: spec.Operands, output: Tensor) -> spec.Shape:
    options = operator.options
    assert isinstance(options, TransposedConvolution)
    size, weights, source, *bias = operands_of(operands, 3, 4)
    require(not source.is_constant, "the image is a constant")
    shape, kernel = image(source), image(weights)
    require(kernel[3] == shape[3], f"kernel for {kernel[3]} channels, input has {shape[3]}")
    require(weights.dtype != "int4", "weights of type int4")
    require(
        size.dtype == "int32" and size.data is not None and size.shape == (4,),
        "the size of the result is not a constant of four int32; convert the model with a fixed "
        "batch of 1",
    )
    assert size.data is not None
    batch, height, width, channels = (int(number) for number in size.data)
    require(
        batch == shape[0] == 1,
        f"the size of the result is for a batch of {batch} and the image {source.name!r} declares "
        f"{'any' if shape[0] == BATCH else shape[0]}; both must be 1",
    )
    require(channels == kernel[0], f"{channels} channels of {kernel[0]} kernels")
    require(min(height, width) >= 1, f"the size ({height}, {width}) is out of range")
    for axis, stride in ((1, options.stride_h), (2, options.stride_w)):
        whole = (height, width)[axis - 1]
        found = output_size(whole, kernel[axis], stride, 1, options.padding)
        require(
            options.padding == "VALID" or kernel[axis] >= stride,
            f"a window of {kernel[axis]} and a larger stride of {stride} under SAME padding, which "
            "XNNPACK leaves to kernels that round otherwise",
        )
        require(
            found == shape[axis],
            f"a convolution makes {found} of {whole} pixels, and the image has {shape[axis]}",
        )
    check_activation(options)
    weighted.check_weights([source, weights, *bias], output, 0)
    return (1, height, width, channels)


def _accumulate(step: spec.Step, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    options = step.operator.options
    assert isinstance(options, TransposedConvolution)
    rows, columns = values.shape[1:3]
    _, high, wide, channels = step.output.shape
    (taps_h, taps_w), strides = weights.shape[1:3], (options.stride_h, options.stride_w)
    reached = [
        (count - 1) * stride + taps
        for count, stride, taps in zip((rows, columns), strides, (taps_h, taps_w), strict=True)
    ]
    top, left = _cut(step)
    size = (max(reached[0], top + high), max(reached[1], left + wide))
    sums = np.zeros((len(values), *size, channels))
    for row, column in np.ndindex(taps_h, taps_w):
        place = (
            slice(None),
            slice(row, row + (rows - 1) * strides[0] + 1, strides[0]),
            slice(column, column + (columns - 1) * strides[1] + 1, strides[1]),
        )
        sums[place] += values @ weights[:, row, column].T
    return sums[:, top : top + high, left : left + wide]


def _reference(step: spec.Step, operands: list[np.ndarray]) -> np.ndarray:
    _, weights, source, *bias = operands
    return weighted.compute(
        as_weighted(step), [source, weights, *bias], _accumulate, step.kernels.depthwise
    )


def _macs(operands: spec.Operands, output: Tensor) -> int:
    del output
    if len(operands) < 3 or operands[1] is None or operands[2] is None:
        return 0
    return math.prod(operands[2].shape[1:3]) * math.prod(operands[1].shape)


def _interval(step: spec.Step, boxes: list[spec.Box]) -> spec.Box:
    _, weights, source, *bias = boxes
    return weighted.bound(
        as_weighted(step), [source, weights, *bias], _accumulate, step.kernels.depthwise
    )


def _norm(step: spec.Step) -> spec.LinearPart:
    """That of the convolution from the result's image to the operand's."""
    options = step.operator.options
    assert isinstance(options, TransposedConvolution)
    return spec.LinearPart(
        weighted.real_weights(as_weighted(step)).transpose(1, 2, 0, 3),
        step.output.shape[1:],  # type: ignore[arg-type]
        (options.stride_h, options.stride_w),
        options.padding.lower(),
        (1, 1),
        1,
    )


SPEC = spec.OperatorSpec(
    kind="TRANSPOSE_CONV",
    schema=OperatorSchema(
        TransposedConvolution,
        49,
        "TransposeConvOptions",
        (*window_fields(0), activation_field(3)),
        version=4,
        ignored=(4,),
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
    int16_in=(),
    missing_in=(),
    twin="transpose_conv_twin",
)
