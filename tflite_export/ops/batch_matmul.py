"""BATCH_MATMUL: products of matrices, the last two dimensions; of two activations, or one constant.

XNNPACK takes it where the zero point of the right operand is 0, and rescales in float32, ties to
even. All other kernels, to which it leaves the rest, rescale in fixed point, ties away from zero.
The built-in kernels of tflite-runtime 2.14 give other integers for some shapes, and are refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tflite_export.ir.graph import Operator, Options, Tensor
from tflite_export.ir.requantization import (
    fixed_point,
    requantization_scale,
    scale_away,
    scale_in_float32,
)
from tflite_export.ir.schema import OperatorSchema, OptionField
from tflite_export.ops import checks, spec

_LARGEST_RANK = 5
_LARGEST_PRODUCT = 255 * 255
_LARGEST_FACTOR = 128.0
"""XNNPACK crashes from 255 on where the right operand is a constant."""


@dataclass(frozen=True)
class BatchMatMul(Options):
    """Options of ``BATCH_MATMUL``: whether an operand's last two dimensions are exchanged."""

    adj_x: bool = False
    adj_y: bool = False


def in_order(operator: Operator, shapes: list[spec.Shape]) -> list[spec.Shape]:
    """Shapes of the two operands as they are multiplied, the last two dimensions exchanged."""
    options = operator.options
    assert isinstance(options, BatchMatMul)
    turned = (options.adj_x, options.adj_y)
    return [
        (*shape[:-2], shape[-1], shape[-2]) if turn else shape
        for shape, turn in zip(shapes, turned, strict=True)
    ]


def _check(operator: Operator, operands: spec.Operands, output: Tensor) -> spec.Shape:
    present = checks.operands_of(operands, 2, 2)
    for tensor in (*present, output):
        checks.require(tensor.dtype == "int8", f"type {tensor.dtype}; only int8 is known")
        checks.quantized_or_float(tensor)
        rank = len(tensor.shape)
        least = 2 if tensor.is_constant else 3
        checks.require(
            least <= rank <= _LARGEST_RANK,
            f"{tensor.name!r} has {rank} dimensions, expected {least} to {_LARGEST_RANK}",
        )
    moving = [tensor for tensor in present if not tensor.is_constant]
    checks.require(bool(moving), "both operands are constants")
    lead = moving[0].shape[:-2]
    for tensor in present:
        own = tensor.shape[:-2]
        repeated = tensor.is_constant and all(size == 1 for size in own)
        checks.require(
            (repeated and len(own) <= len(lead)) or (not tensor.is_constant and own == lead),
            f"{tensor.name!r} has shape {tensor.shape}, expected the leading sizes {lead}, or of a "
            "constant ones",
        )
    left, right = in_order(operator, [tensor.shape for tensor in present])
    checks.require(left[-1] == right[-2], f"matrices of {left[-2:]} and {right[-2:]}")
    factor = real_factor(present, output)
    checks.require(
        checks.SMALLEST_FACTOR**2 <= factor < _LARGEST_FACTOR,
        f"scales of the operands over the result are {factor:.3g}, expected "
        f"{checks.SMALLEST_FACTOR**2:.3g} to {_LARGEST_FACTOR:g}",
    )
    # fixed-point kernels shift the sums to the left by what the factor is above a half
    shifted = 2 ** max(fixed_point(factor)[1], 0)
    checks.require(
        left[-1] * _LARGEST_PRODUCT * shifted < 2**31,
        f"sums of {left[-1]} products, times a factor of {factor:.3g}, do not fit 32 bits",
    )
    return (*lead, left[-2], right[-1])


def real_factor(operands: list[Tensor], output: Tensor) -> float:
    """From sums of products to steps of the result, as fixed-point kernels compute it.

    They multiply the scales of the operands in float32, and divide in float64.
    """
    products = np.float32(operands[0].scale) * np.float32(operands[1].scale)
    return float(products) / float(output.scale)


def float32_factor(operands: list[Tensor], output: Tensor) -> np.ndarray:
    """The same as XNNPACK computes it, float32 ``(1,)``."""
    left, right = operands
    return requantization_scale(left.scale, right.scale.reshape(1), output.scale)


def _arranged(step: spec.Step, operands: list[np.ndarray]) -> list[np.ndarray]:
    """Centred integers as they are multiplied, int64."""
    options = step.operator.options
    assert isinstance(options, BatchMatMul)
    centred = [
        value.astype(np.int64) - tensor.zero_point
        for value, tensor in zip(operands, step.inputs, strict=True)
    ]
    return [
        np.swapaxes(value, -1, -2) if turn else value
        for value, turn in zip(centred, (options.adj_x, options.adj_y), strict=True)
    ]


def _rescaled(step: spec.Step, sums: np.ndarray) -> np.ndarray:
    if step.xnnpack:
        return step.finish(scale_in_float32(sums, float32_factor(step.inputs, step.output)))
    factor = real_factor(step.inputs, step.output)
    return step.finish(scale_away(sums.astype(np.int64), np.array([factor])))


def _reference(step: spec.Step, operands: list[np.ndarray]) -> np.ndarray:
    # float64 holds every sum exactly and is fast in NumPy
    left, right = (value.astype(np.float64) for value in _arranged(step, operands))
    return _rescaled(step, left @ right)


def _interval(step: spec.Step, boxes: list[spec.Box]) -> spec.Box:
    """The sums of the least and of the greatest of each product, which lie at corners."""
    lows, highs = ([box[side] for box in boxes] for side in (0, 1))
    (left_low, right_low), (left_high, right_high) = (_arranged(step, e) for e in (lows, highs))
    least: np.ndarray | int = 0
    most: np.ndarray | int = 0
    for place in range(left_low.shape[-1]):
        corners = [
            left[..., :, place, None] * right[..., None, place, :]
            for left in (left_low, left_high)
            for right in (right_low, right_high)
        ]
        least = least + np.minimum.reduce(np.broadcast_arrays(*corners))
        most = most + np.maximum.reduce(np.broadcast_arrays(*corners))
    return step.typed(_rescaled(step, np.asarray(least))), step.typed(
        _rescaled(step, np.asarray(most))
    )


def _norm(step: spec.Step) -> float:
    """The norm of the other operand: of a constant its matrix', else of the largest that it can be.

    Between two activations it is the larger of both bounds.
    """
    norms = []
    for place, tensor in enumerate(step.inputs):
        other = step.inputs[1 - place]
        if tensor.is_constant:
            continue
        if other.data is not None:
            matrix = (other.data.astype(np.float64) - other.zero_point) * float(other.scale)
            norms.append(float(np.linalg.norm(matrix, 2, axis=(-2, -1)).max()))
            continue
        largest = max(127 - other.zero_point, 128 + other.zero_point) * float(other.scale)
        norms.append(largest * math.sqrt(math.prod(other.shape[-2:])))
    return spec.ROUND_UP * max(norms)


def _macs(operands: spec.Operands, output: Tensor) -> int:
    left = operands[0]
    assert left is not None
    inner = math.prod(left.shape[-2:]) // output.shape[-2]
    return inner * math.prod(output.shape[1:])


def _rounding_error(step: spec.Step) -> float:
    return 0.5 + (spec.FLOAT32_ERROR if step.xnnpack else spec.FIXED_POINT_ERROR)


def _right_is_symmetric(inputs: Sequence[Tensor], output: Tensor) -> bool:
    """XNNPACK has no zero point for the right operand."""
    del output
    return inputs[1].zero_point == 0


SPEC = spec.OperatorSpec(
    kind="BATCH_MATMUL",
    schema=OperatorSchema(
        BatchMatMul,
        101,
        "BatchMatMulOptions",
        (OptionField("adj_x", 0, "bool"), OptionField("adj_y", 1, "bool")),
        ignored=(2,),
    ),
    check=_check,
    xnnpack=_right_is_symmetric,
    reference=_reference,
    macs=_macs,
    keeps=spec.Keeps.NOTHING,
    obstacle=spec.integers_only,
    interval=_interval,
    norm=_norm,
    stacked=False,
    several=False,
    rounding_error=_rounding_error,
    int16_in=(),
    missing_in=("builtin-2.14",),
    twin="batch_matmul_twin",
)
