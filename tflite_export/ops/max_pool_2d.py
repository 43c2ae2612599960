"""MAX_POOL_2D: the largest integer of each window."""

from __future__ import annotations

import numpy as np

from tflite_export.ir.graph import INTEGER_RANGES, Pooling, activation_range
from tflite_export.ops import spec
from tflite_export.ops.pooling import SCHEMA, check_pool, pool_norm
from tflite_export.ops.windows import max_pool_axis, windows


def _reference(step: spec.Step, operands: list[np.ndarray]) -> np.ndarray:
    options = step.operator.options
    assert isinstance(options, Pooling)
    lowest = INTEGER_RANGES[step.output.dtype][0]
    view = windows(operands[0], (options.filter_h, options.filter_w), options, lowest)
    return np.clip(view.max(axis=(4, 5)), *activation_range(options.activation, step.output))


def _norm(step: spec.Step) -> float:
    return pool_norm(step, max_pool_axis)


SPEC = spec.OperatorSpec(
    kind="MAX_POOL_2D",
    schema=SCHEMA,
    check=check_pool,
    xnnpack=spec.unless_int4_or_int16,
    reference=_reference,
    macs=spec.no_macs,
    keeps=spec.Keeps.INTEGERS,
    obstacle=spec.integers_only,
    interval=spec.increasing(_reference),
    norm=_norm,
    stacked=False,
    several=False,
    rounding_error=spec.exact,
    int16_in=spec.KERNEL_SETS,
    missing_in=(),
    twin="max_pool_2d_twin",
)
