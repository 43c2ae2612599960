"""FULLY_CONNECTED: a dense layer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tflite_export.ir.graph import FullyConnected, Operator, Tensor
from tflite_export.ir.requantization import Rescale, requantization_scale
from tflite_export.ir.schema import TENSOR_TYPES, OperatorSchema, OptionField, activation_field
from tflite_export.ops import spec, weighted
from tflite_export.ops.checks import check_activation, operands_of, require


def _check(operator: Operator, operands: spec.Operands, output: Tensor) -> spec.Shape:
    options = operator.options
    assert isinstance(options, FullyConnected)
    present = operands_of(operands, 2, 3)
    source, weights = present[0], present[1]
    require(
        options.weights_format == 0 and not options.keep_num_dims,
        "shuffled weights or kept dimensions",
    )
    require(len(weights.shape) == 2, f"weights of shape {weights.shape}, expected 2 dimensions")
    require(len(source.shape) >= 2, f"input of shape {source.shape}")
    require(weights.dtype != "int4", "int4 weights; write the layer as a 1 x 1 convolution")
    size = math.prod(source.shape[1:])
    require(
        size == weights.shape[1], f"weights for {weights.shape[1]} inputs, the input has {size}"
    )
    check_activation(options)
    weighted.check_weights(present, output, 0)
    if output.dtype == "int16" and weights.data is not None and sums_in_32_bits(operator, present):
        _check_32_bits(source, weights, weights.data, output)
    return (source.shape[0], weights.shape[0])


def _check_32_bits(source: Tensor, weights: Tensor, data: np.ndarray, output: Tensor) -> None:
    """Check that sums of int16 products fit 32 bits, also after the shift of fixed-point kernels.

    Args:
        source: the input.
        weights: of the layer.
        data: their integers.
        output: the result.
    """
    grid = weights.quantization
    assert grid is not None
    largest = np.abs(data.astype(np.int64)).sum(axis=1) << 15
    factors = requantization_scale(source.scale, grid.scale, output.scale)
    require(
        bool((weighted.shifted(largest, factors) < 2**31).all()),
        f"sums of up to {largest.max()}, times factors of up to {factors.max():.3g}, do not fit "
        "the 32 bits they are added in without a bias of int64; give the layer one, of zeros",
    )


def rounding(
    operator: Operator, inputs: Sequence[Tensor], output: Tensor, kernels: spec.KernelSet
) -> Rescale:
    """How the sums are rescaled where XNNPACK does not take the operator."""
    wide = kernels.dense if sums_in_32_bits(operator, inputs) else kernels.wide_dense
    return weighted.rounding(output, kernels.dense, wide)


def sums_in_32_bits(operator: Operator, inputs: Sequence[Tensor]) -> bool:
    """Whether kernels add the products of int16 in 32 bits, as they do without a bias of 64."""
    assert isinstance(operator.options, FullyConnected)
    return len(inputs) == 2 and operator.options.quantized_bias_type != "int64"


def _accumulate(step: spec.Step, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    del step
    return values.reshape(-1, weights.shape[1]) @ weights.T


def _reference(step: spec.Step, operands: list[np.ndarray]) -> np.ndarray:
    fixed = rounding(step.operator, step.inputs, step.output, step.kernels)
    return weighted.compute(step, operands, _accumulate, fixed)


def _macs(operands: spec.Operands, output: Tensor) -> int:
    del output
    weights = weighted.weights_of(operands)
    return 0 if weights is None else math.prod(weights.shape)


def _interval(step: spec.Step, boxes: list[spec.Box]) -> spec.Box:
    fixed = rounding(step.operator, step.inputs, step.output, step.kernels)
    return weighted.bound(step, boxes, _accumulate, fixed)


def _norm(step: spec.Step) -> spec.LinearPart:
    kernel = weighted.real_weights(step).T
    return spec.LinearPart(kernel[None, None], (1, 1, kernel.shape[0]), (1, 1), "valid", (1, 1), 1)


SPEC = spec.OperatorSpec(
    kind="FULLY_CONNECTED",
    schema=OperatorSchema(
        FullyConnected,
        8,
        "FullyConnectedOptions",
        (
            activation_field(0),
            OptionField("weights_format", 1, "int8"),
            OptionField("keep_num_dims", 2, "bool"),
            OptionField("quantized_bias_type", 4, "int8", choices=TENSOR_TYPES),
        ),
        version=4,
        int4_version=10,
        ignored=(3,),
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
    twin="fully_connected_twin",
)
