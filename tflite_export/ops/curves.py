"""What operators share that map each integer by itself, from a table: LOGISTIC and TANH."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tflite_export.ir.graph import INTEGER_RANGES, NoOptions, Operator, Tensor
from tflite_export.ir.schema import OperatorSchema
from tflite_export.ops import checks, spec

Curve = Callable[[np.ndarray], np.ndarray]


def table(step: spec.Step, curve: Curve, fixed_point: Callable[..., np.ndarray]) -> np.ndarray:
    """Return the result for each of the 256 integers, from the lowest on, in the output's type.

    Args:
        step: the operator.
        curve: the function on reals, float32 to float32.
        fixed_point: the function of the reference kernels, from integers counted from the zero
            point and their scale to steps of the output.
    """
    (source,) = step.inputs
    centred = np.arange(*_with_end(source)) - source.zero_point
    if step.kernels.divides:
        return step.typed(step.finish(fixed_point(centred, source.scale)))
    steps = curve((source.scale * centred.astype(np.float32)).astype(np.float32))
    steps = (steps / step.output.scale).astype(np.float32).astype(np.float64)
    rounded = np.rint(steps) if step.xnnpack else np.trunc(steps + np.copysign(0.5, steps))
    return step.typed(step.finish(rounded.astype(np.int64)))


def _with_end(source: Tensor) -> tuple[int, int]:
    low, high = INTEGER_RANGES[source.dtype]
    return low, high + 1


def curve_spec(
    kind: str,
    schema: tuple[int, str],
    grid: tuple[float, int],
    curve: Curve,
    fixed_point: Callable[..., np.ndarray],
    slope: float,
) -> spec.OperatorSpec:
    """Return the specification of an operator that maps each integer by itself, and rises.

    Args:
        kind: the operator.
        schema: union code and table of its options, ``(0, "NONE")`` where the schema has none.
        grid: scale and zero point that its int8 result must have.
        curve: the function on reals, float32 to float32.
        fixed_point: as `table` takes it.
        slope: the largest of the curve.
    """

    def check(operator: Operator, operands: spec.Operands, output: Tensor) -> spec.Shape:
        del operator
        (source,) = checks.operands_of(operands, 1, 1)
        checks.require(not source.is_constant, "the operand is a constant")
        for tensor in (source, output):
            checks.quantized_or_float(tensor)
            checks.require(
                tensor.dtype == output.dtype, f"type {tensor.dtype} in, {output.dtype} out"
            )
        if output.dtype == "float32":
            return source.shape
        checks.require(output.dtype == "int8", f"type {output.dtype}; only int8 is known")
        found = (output.scale, output.zero_point)
        checks.require(
            found == (np.float32(grid[0]), grid[1]),
            f"the result must have scale {grid[0]} and zero point {grid[1]}",
        )
        return source.shape

    def reference(step: spec.Step, operands: list[np.ndarray]) -> np.ndarray:
        low = INTEGER_RANGES[step.inputs[0].dtype][0]
        return table(step, curve, fixed_point)[operands[0].astype(np.int64) - low]

    return spec.OperatorSpec(
        kind=kind,
        schema=OperatorSchema(NoOptions, *schema),
        check=check,
        xnnpack=spec.unless_int4_or_int16,
        reference=reference,
        macs=spec.no_macs,
        keeps=spec.Keeps.NOTHING,
        obstacle=spec.integers_only,
        interval=spec.increasing(reference),
        norm=lambda step: slope,
        stacked=False,
        several=False,
        # Half a step of rounding, and one where the largest value has no integer.
        rounding_error=lambda step: 1.5,
        int16_in=(),
        missing_in=(),
        twin=f"{kind.lower()}_twin",
    )
