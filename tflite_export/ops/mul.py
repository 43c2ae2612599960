"""MUL: an activation times a constant that may repeat along batch and channels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tflite_export.ir.graph import Elementwise, Operator, Tensor
from tflite_export.ir.requantization import requantization_scale, scale_away, scale_in_float32
from tflite_export.ir.schema import OperatorSchema, activation_field
from tflite_export.ops import checks, spec


def _check(operator: Operator, operands: spec.Operands, output: Tensor) -> spec.Shape:
    assert isinstance(operator.options, Elementwise)
    source, factor = checks.operands_of(operands, 2, 2)
    checks.check_activation(operator.options)
    for tensor in (source, factor, output):
        checks.quantized_or_float(tensor)
        checks.require(
            tensor.dtype == output.dtype, f"types {tensor.dtype} and {output.dtype} are mixed"
        )
    checks.require(output.dtype != "uint8", "uint8 operands")
    checks.require(
        not source.is_constant and factor.is_constant, "expected an activation, a constant"
    )
    checks.require(
        len(factor.shape) == len(source.shape)
        and factor.shape[0] == 1
        and all(f in (1, s) for f, s in zip(factor.shape[1:], source.shape[1:], strict=True)),
        f"a constant of shape {factor.shape} does not repeat to {source.shape}",
    )
    if output.dtype == "int8":
        ratio = float(source.scale) * float(factor.scale) / float(output.scale)
        checks.require(
            checks.SMALLEST_FACTOR <= ratio < checks.LARGEST_FACTOR,
            f"scale of the product over output: {ratio}",
        )
    return source.shape


def _reference(step: spec.Step, operands: list[np.ndarray]) -> np.ndarray:
    left, right = (
        v.astype(np.int64) - t.zero_point for v, t in zip(operands, step.inputs, strict=True)
    )
    scales = [tensor.scale for tensor in step.inputs]
    factor = requantization_scale(scales[0], scales[1].reshape(1), step.output.scale)
    scale = scale_in_float32 if step.xnnpack else scale_away
    return step.finish(scale(left * right, factor))


def _obstacle(inputs: Sequence[Tensor], output: Tensor) -> str:
    if sum(tensor.is_constant for tensor in inputs) != 1 or len(inputs) != 2:
        return "is not the product of an activation with one constant"
    return spec.integers_only(inputs, output)


def _interval(step: spec.Step, boxes: list[spec.Box]) -> spec.Box:
    """Rising where the constant is positive, falling where it is negative."""
    ends = [step.typed(_reference(step, [box[side] for box in boxes])) for side in (0, 1)]
    return np.minimum(*ends), np.maximum(*ends)


def _norm(step: spec.Step) -> float:
    """The largest factor in magnitude."""
    constants = [tensor for tensor in step.inputs if tensor.data is not None]
    if len(constants) != 1 or len(step.inputs) != 2:
        raise ValueError(
            f"operator MUL, which computes {step.output.name!r}, multiplies "
            f"{', '.join(repr(t.name) for t in step.inputs)}; only the product of an activation "
            "with a constant has a norm"
        )
    factors = np.asarray(constants[0].data, np.float64) - constants[0].zero_point
    return float(np.max(np.abs(factors))) * float(constants[0].scale) * spec.ROUND_UP


def _rounding_error(step: spec.Step) -> float:
    return 0.5 + (spec.FLOAT32_ERROR if step.xnnpack else spec.FIXED_POINT_ERROR)


SPEC = spec.OperatorSpec(
    kind="MUL",
    schema=OperatorSchema(Elementwise, 21, "MulOptions", (activation_field(0),)),
    check=_check,
    xnnpack=spec.unless_int4,
    reference=_reference,
    macs=spec.no_macs,
    keeps=spec.Keeps.NOTHING,
    obstacle=_obstacle,
    interval=_interval,
    norm=_norm,
    stacked=False,
    rounding_error=_rounding_error,
    twin="mul_twin",
)
