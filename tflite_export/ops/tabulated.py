"""What operators share that map each int8 by itself, on any grids: RELU, HARD_SWISH and others."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tflite_export.ir.graph import INTEGER_RANGES, Operator, Tensor
from tflite_export.ir.schema import OperatorSchema
from tflite_export.ops import checks, spec

_LOWEST, _HIGHEST = INTEGER_RANGES["int8"]
EVERY = np.arange(_LOWEST, _HIGHEST + 1)
"""All integers of an operand, in the order of a table."""


def tabulated_spec(
    kind: str,
    schema: OperatorSchema,
    scales: tuple[float, float],
    table: Callable[[spec.Step, np.ndarray], np.ndarray],
    curve: Callable[[Operator, np.ndarray], np.ndarray],
    slope: float,
    missing_in: tuple[str, ...],
) -> spec.OperatorSpec:
    """Return the specification of an operator that maps each int8 by itself.

    Args:
        kind: the operator.
        schema: how its options are stored.
        scales: what the operand's step over the result's must be: at least, and less than.
        table: from a step and centred integers to whole steps of the result.
        curve: the function on reals, float64.
        slope: its steepest in magnitude.
        missing_in: the kernel sets that do not have it.
    """

    def check(operator: Operator, operands: spec.Operands, output: Tensor) -> spec.Shape:
        del operator
        (source,) = checks.operands_of(operands, 1, 1)
        check_steps(source, output, scales)
        return source.shape

    def results(step: spec.Step) -> np.ndarray:
        return step.typed(step.finish(table(step, EVERY - step.inputs[0].zero_point)))

    def reference(step: spec.Step, operands: list[np.ndarray]) -> np.ndarray:
        return results(step)[operands[0].astype(np.int64) - _LOWEST]

    def interval(step: spec.Step, boxes: list[spec.Box]) -> spec.Box:
        """The smallest and the largest result between two integers, whether it rises or not."""
        found = results(step)
        low, high = (np.asarray(side).astype(np.int64) - _LOWEST for side in boxes[0])
        ends = []
        for choose in (np.minimum, np.maximum):
            # Row by first integer, column by last: what is below the diagonal is never looked up.
            running = np.array([choose.accumulate(np.roll(found, -k)) for k in range(len(found))])
            ends.append(step.typed(running[low, high - low]))
        return ends[0], ends[1]

    def rounding_error(step: spec.Step) -> float:
        """The largest difference that there is, of all integers."""
        source, output = step.inputs[0], step.output
        reals = curve(step.operator, (EVERY - source.zero_point) * float(source.scale))
        wanted = np.clip(reals / float(output.scale) + output.zero_point, _LOWEST, _HIGHEST)
        return float(np.abs(wanted - results(step)).max()) * spec.ROUND_UP + 1e-9

    return spec.OperatorSpec(
        kind=kind,
        schema=schema,
        check=check,
        xnnpack=spec.unless_int4_or_int16,
        reference=reference,
        macs=spec.no_macs,
        keeps=spec.Keeps.NOTHING,
        obstacle=spec.integers_only,
        interval=interval,
        norm=lambda step: slope,
        stacked=False,
        several=False,
        rounding_error=rounding_error,
        int16_in=(),
        missing_in=missing_in,
        twin=f"{kind.lower()}_twin",
    )


def check_steps(
    source: Tensor, output: Tensor, scales: tuple[float, float], dtype: str = "int8"
) -> None:
    """Check that an activation and its result have a type, and their steps in proportion.

    Args:
        source: the operand.
        output: the result.
        scales: what the operand's step over the result's must be: at least, and less than.
        dtype: the type.
    """
    checks.require(not source.is_constant, "the operand is a constant")
    for tensor in (source, output):
        checks.require(tensor.dtype == dtype, f"type {tensor.dtype}; only {dtype} is known")
        checks.quantized_or_float(tensor)
    ratio = float(source.scale) / float(output.scale)
    checks.require(
        scales[0] <= ratio < scales[1],
        f"a step of the operand is {ratio:.3g} of the result, kernels are known from "
        f"{scales[0]:.3g} to {scales[1]:.3g}",
    )


def in_float32(
    step: spec.Step, centred: np.ndarray, curve: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Whole steps as built-in kernels tabulate a curve in float32, halves away from zero."""
    source, output = step.inputs[0], step.output
    reals = (source.scale * centred.astype(np.float32)).astype(np.float32)
    steps = (curve(reals).astype(np.float32) / output.scale).astype(np.float32).astype(np.float64)
    return np.trunc(steps + np.copysign(0.5, steps)).astype(np.int64)
