"""What RELU, RELU6, RELU_N1_TO_1 and RELU_0_TO_1 share: a change of grid between two bounds."""

from __future__ import annotations

import math

import numpy as np

from tflite_export.ir.graph import NoOptions, Operator, round_half_away
from tflite_export.ir.requantization import scale_away
from tflite_export.ir.schema import OperatorSchema
from tflite_export.ops import checks, spec
from tflite_export.ops.tabulated import tabulated_spec


def rectifier_spec(kind: str, version: int, low: float, high: float) -> spec.OperatorSpec:
    """Return the specification of a rectifier that is an operator of its own.

    Args:
        kind: the operator.
        version: of it that takes int8.
        low: the smallest result, in real units.
        high: the largest; infinite for none.
    """

    def table(step: spec.Step, centred: np.ndarray) -> np.ndarray:
        scale = step.output.scale
        factor = float(step.inputs[0].scale) / float(scale)
        steps = scale_away(centred, np.array([factor]))
        least = round_half_away(np.float32(low) / scale)
        most = None if math.isinf(high) else round_half_away(np.float32(high) / scale)
        return np.clip(steps, least, most)

    def curve(operator: Operator, reals: np.ndarray) -> np.ndarray:
        del operator
        return np.clip(reals, low, high)

    return tabulated_spec(
        kind,
        OperatorSchema(NoOptions, 0, "NONE", version=version),
        (checks.SMALLEST_FACTOR, checks.LARGEST_FACTOR),
        table,
        curve,
        1.0,
        (),
    )
