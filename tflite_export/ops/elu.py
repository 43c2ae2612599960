"""ELU: ``x`` above 0 and ``exp(x) - 1`` below, looked up in a table."""

from __future__ import annotations

import numpy as np

from tflite_export.ir.graph import NoOptions, Operator
from tflite_export.ir.schema import OperatorSchema
from tflite_export.ops import checks, spec
from tflite_export.ops.tabulated import in_float32, tabulated_spec


def _curve(operator: Operator, reals: np.ndarray) -> np.ndarray:
    del operator
    return np.where(reals < 0, np.expm1(np.minimum(reals, 0)), reals)


def _rounded_curve(reals: np.ndarray) -> np.ndarray:
    """The curve with each step rounded to float32."""
    powers = np.exp(np.minimum(reals, 0).astype(np.float64)).astype(np.float32)
    return np.where(reals < 0, powers - np.float32(1.0), reals)


def _table(step: spec.Step, centred: np.ndarray) -> np.ndarray:
    if not step.xnnpack:
        return in_float32(step, centred, _rounded_curve)
    source, output = step.inputs[0], step.output
    steps = _rounded_curve(source.scale * centred.astype(np.float32)) / output.scale
    # XNNPACK rounds what has the zero point in it already, ties to even.
    whole = np.rint(steps.astype(np.float32) + np.float32(output.zero_point))
    return whole.astype(np.int64) - output.zero_point


SPEC = tabulated_spec(
    "ELU",
    OperatorSchema(NoOptions, 0, "NONE", version=1),
    (checks.SMALLEST_FACTOR, checks.LARGEST_FACTOR),
    _table,
    _curve,
    1.0,
    ("reference", "reference-2.14"),
)
