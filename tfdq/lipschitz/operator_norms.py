"""The L2 norm and the rounding error of every operator of an integer graph.

There is no default: an operator without a rule has no certificate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tfdq.lipschitz.intervals import linear_part
from tfdq.lipschitz.layer_maps import average_pool_axis, max_pool_axis
from tfdq.lipschitz.norms import measure
from tflite_export.graph import MirrorPadding, Pooling, Softmax, Tensor
from tflite_export.reference import Step, add_multipliers

_ROUND_UP = 1 + 1e-12
# An output beyond 512 steps is clamped whatever its error; five float32 roundings lie before it.
_FLOAT32 = 512 * 5 * 2.0**-24
# Fixed-point kernels round twice, the first time in halves of a step or finer; their factors may
# come from products in float32.
_FIXED_POINT = 0.25 + _FLOAT32


@dataclass(frozen=True)
class OperatorNorm:
    """The largest factor by which an operator stretches a distance, in real units.

    Attributes:
        sigma: the measured norm.
        upper: a proven bound.
        reshaped: largest singular value of the reshaped kernel; None without a kernel.
    """

    sigma: float
    upper: float
    reshaped: float | None = None


@dataclass(frozen=True)
class OperatorRule:
    """What a certificate must know of an operator.

    Attributes:
        norm: of the operator and the tolerance of a measurement, its norm for each of its moving
            inputs.
        rounding: by how many steps of the output its integers can differ from the real result.
        stacked: the squares of its inputs' distances add, as in a concatenation.
    """

    norm: Callable[[Step, float], OperatorNorm]
    rounding: Callable[[Step], float]
    stacked: bool = False


def rule_of(step: Step) -> OperatorRule:
    """Return the rule of an operator.

    Raises:
        ValueError: the operator has no rule; the message names it and its output.
    """
    kind, name = step.operator.kind, step.output.name
    if kind not in OPERATOR_RULES:
        raise ValueError(
            f"operator {kind}, which computes {name!r}, has no Lipschitz rule, so nothing can be "
            f"certified; there is one for {', '.join(OPERATOR_RULES)}"
        )
    return OPERATOR_RULES[kind]


def input_rounding(tensor: Tensor) -> float:
    """Return by how many steps quantizing an input can move it; 0 for floats."""
    return 0.0 if tensor.dtype == "float32" else 0.5 + _FLOAT32


def _exact(step: Step) -> float:
    """Return the rounding error of an operator that moves integers only."""
    return 0.0


def _isometric(step: Step, tolerance: float) -> OperatorNorm:
    """Return the norm of an operator that moves entries, adds or compares them."""
    return OperatorNorm(1.0, 1.0)


def _kernel_norm(step: Step, tolerance: float) -> OperatorNorm:
    """Measure integer weights times their scales."""
    tensor, grid = step.inputs[1], step.inputs[1].quantization
    if tensor.data is None or grid is None:
        raise ValueError(f"the weights {tensor.name!r} are not a quantized constant")
    shape = [1] * tensor.data.ndim
    shape[grid.axis] = grid.scale.size
    weights = tensor.data.astype(np.float64) * grid.scale.astype(np.float64).reshape(shape)
    image = step.inputs[0].shape[1:]
    if any(size < 1 for size in image):
        kind, name = step.operator.kind, step.inputs[0].name
        raise ValueError(f"the input {name!r} of {kind} has an open size {image}; fix it first")
    norm = measure(linear_part(step.operator, weights, image), tolerance)
    return OperatorNorm(norm.sigma, norm.upper, norm.reshaped)


def _product_norm(step: Step, tolerance: float) -> OperatorNorm:
    """Return the largest magnitude of the constant that an activation is multiplied by."""
    constants = [tensor for tensor in step.inputs if tensor.data is not None]
    if len(constants) != 1 or len(step.inputs) != 2:
        raise ValueError(
            f"operator MUL, which computes {step.output.name!r}, multiplies "
            f"{', '.join(repr(t.name) for t in step.inputs)}; only the product of an activation "
            "with a constant has a norm"
        )
    factors = np.asarray(constants[0].data, np.float64) - constants[0].zero_point
    largest = float(np.max(np.abs(factors))) * float(constants[0].scale)
    return OperatorNorm(largest, largest * _ROUND_UP)


def _pool_norm(rule: Callable[[int, int, int, str], float]) -> Callable[..., OperatorNorm]:
    """Return the norm of a pooling from that of one axis."""

    def norm(step: Step, tolerance: float) -> OperatorNorm:
        options = step.operator.options
        assert isinstance(options, Pooling)
        height, width = step.inputs[0].shape[1:3]
        padding = options.padding.lower()
        constant = rule(height, options.filter_h, options.stride_h, padding) * rule(
            width, options.filter_w, options.stride_w, padding
        )
        return OperatorNorm(constant, constant * _ROUND_UP)

    return norm


def _mean_norm(step: Step, tolerance: float) -> OperatorNorm:
    constant = 1.0 / math.sqrt(math.prod(step.inputs[0].shape[1:3]))
    return OperatorNorm(constant, constant * _ROUND_UP)


def _mirror_norm(step: Step, tolerance: float) -> OperatorNorm:
    """Count how often the entry that is mirrored most is in the result."""
    options = step.operator.options
    assert isinstance(options, MirrorPadding)
    sizes, amounts = step.inputs[0].shape[1:], np.asarray(step.inputs[1].data)[1:]
    copies = [
        int(np.bincount(np.pad(np.arange(size), pair, options.mode.lower())).max())  # type: ignore[call-overload]
        for size, pair in zip(sizes, amounts, strict=True)
    ]
    constant = math.sqrt(math.prod(copies))
    return OperatorNorm(constant, constant * _ROUND_UP)


def _softmax_norm(step: Step, tolerance: float) -> OperatorNorm:
    """Return half of beta: ``diag(p) - p p^T`` has no singular value above 1/2."""
    options = step.operator.options
    assert isinstance(options, Softmax)
    constant = 0.5 * options.beta
    return OperatorNorm(constant, constant)


def _rescaled(step: Step) -> float:
    """Return the error of one factor in float32, or of a fixed-point factor."""
    return 0.5 + (_FLOAT32 if step.xnnpack else _FIXED_POINT)


def _add_rounding(step: Step) -> float:
    ratios = [tensor.scale / step.output.scale for tensor in step.inputs]
    if step.xnnpack:
        _, shift = add_multipliers([t.scale for t in step.inputs], step.output.scale)
        factors = len(ratios) * 255 * 0.5 * 2.0**-shift
        return 0.5 + factors + sum(255 * float(r) * 2.0**-23 for r in ratios)
    return 1.0 + sum(255 * float(r) * 2.0**-18 for r in ratios)


def _mean_rounding(step: Step) -> float:
    if not step.xnnpack:
        return 0.5 + _FIXED_POINT
    # Sum times factor and offset are up to 128 steps of the input each, in steps of the output.
    largest = 128 * float(step.inputs[0].scale / step.output.scale)
    return 0.5 + (2 * largest + 512) * 5 * 2.0**-24


def _half_a_step(step: Step) -> float:
    return 0.5


def _softmax_rounding(step: Step) -> float:
    """Return 1: a probability of 1 is stored as 255/256."""
    return 1.0


def _quantize_rounding(step: Step) -> float:
    """Return the error of quantizing floats; between int8 and uint8 the integers only move."""
    return 0.5 + _FLOAT32 if step.inputs[0].dtype == "float32" else 0.0


_KERNEL = OperatorRule(_kernel_norm, _rescaled)
_MOVE = OperatorRule(_isometric, _exact)
_CHOICE = OperatorRule(_isometric, _exact, stacked=True)

OPERATOR_RULES: dict[str, OperatorRule] = {
    "ADD": OperatorRule(_isometric, _add_rounding),
    "AVERAGE_POOL_2D": OperatorRule(_pool_norm(average_pool_axis), _half_a_step),
    "CONCATENATION": _CHOICE,
    "CONV_2D": _KERNEL,
    "DEPTHWISE_CONV_2D": _KERNEL,
    "DEQUANTIZE": _MOVE,
    "FULLY_CONNECTED": _KERNEL,
    "MAXIMUM": _CHOICE,
    "MAX_POOL_2D": OperatorRule(_pool_norm(max_pool_axis), _exact),
    "MEAN": OperatorRule(_mean_norm, _mean_rounding),
    "MINIMUM": _CHOICE,
    "MIRROR_PAD": OperatorRule(_mirror_norm, _exact),
    "MUL": OperatorRule(_product_norm, _rescaled),
    "PAD": OperatorRule(_isometric, _exact),
    "QUANTIZE": OperatorRule(_isometric, _quantize_rounding),
    "RESHAPE": _MOVE,
    "SLICE": _MOVE,
    "SOFTMAX": OperatorRule(_softmax_norm, _softmax_rounding),
}
"""The rule of every operator that has one."""
