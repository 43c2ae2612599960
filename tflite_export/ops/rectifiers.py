"""What RELU, RELU6, RELU_N1_TO_1 and RELU_0_TO_1 share: a change of grid between two bounds."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace

import numpy as np

from tflite_export.ir.graph import NoOptions, Operator, Tensor, round_half_away
from tflite_export.ir.requantization import scale_away
from tflite_export.ir.schema import OperatorSchema
from tflite_export.ops import checks, spec
from tflite_export.ops.tabulated import check_steps, tabulated_spec


def rectifier_spec(
    kind: str, version: int, low: float, high: float, int16_in: Collection[str] = ()
) -> spec.OperatorSpec:
    """Return the specification of a rectifier that is an operator of its own.

    Args:
        kind: the operator.
        version: of it that takes int8.
        low: the smallest result, in real units.
        high: the largest; infinite for none.
        int16_in: the kernel sets that take int16.
    """

    def table(step: spec.Step, centred: np.ndarray) -> np.ndarray:
        scale = step.output.scale
        # kernels divide in float32
        factor = float(step.inputs[0].scale / scale)
        steps = scale_away(centred, np.array([factor]))
        least = round_half_away(np.float32(low) / scale)
        most = None if math.isinf(high) else round_half_away(np.float32(high) / scale)
        return np.clip(steps, least, most)

    def curve(operator: Operator, reals: np.ndarray) -> np.ndarray:
        del operator
        return np.clip(reals, low, high)

    eight_bits = tabulated_spec(
        kind,
        OperatorSchema(NoOptions, 0, "NONE", version=version),
        _SCALES,
        table,
        curve,
        1.0,
        (),
    )

    def check(operator: Operator, operands: spec.Operands, output: Tensor) -> spec.Shape:
        if output.dtype != "int16":
            return eight_bits.check(operator, operands, output)
        (source,) = checks.operands_of(operands, 1, 1)
        check_steps(source, output, _SCALES, "int16")
        return source.shape

    def reference(step: spec.Step, operands: list[np.ndarray]) -> np.ndarray:
        if step.output.dtype != "int16":
            return eight_bits.reference(step, operands)
        return step.finish(table(step, operands[0].astype(np.int64)))

    def rounding_error(step: spec.Step) -> float:
        if step.output.dtype != "int16":
            return eight_bits.rounding_error(step)
        return 0.5 + spec.FIXED_POINT_ERROR

    return replace(
        eight_bits,
        check=check,
        reference=reference,
        interval=spec.increasing(reference),
        rounding_error=rounding_error,
        int16_in=int16_in,
    )


_SCALES = (checks.SMALLEST_FACTOR, checks.LARGEST_FACTOR)
"""What the operand's step over the result's must be: at least, and less than."""
