"""AVERAGE_POOL_2D: the integer mean of each window, ties away from zero, on the input's grid."""

from __future__ import annotations

import numpy as np

from tflite_export.ir.graph import Pooling, activation_range
from tflite_export.ir.requantization import round_half_away_array
from tflite_export.ops import spec
from tflite_export.ops.pooling import SCHEMA, check_pool, pool_norm
from tflite_export.ops.windows import average_pool_axis, pool_counts, windows


def _reference(step: spec.Step, operands: list[np.ndarray]) -> np.ndarray:
    options = step.operator.options
    assert isinstance(options, Pooling)
    window = (options.filter_h, options.filter_w)
    sums = windows(operands[0].astype(np.int64), window, options, 0).sum(axis=(4, 5))
    means = round_half_away_array(sums, pool_counts(operands[0].shape[1:3], options))
    return np.clip(means, *activation_range(options.activation, step.output))


def _norm(step: spec.Step) -> float:
    return pool_norm(step, average_pool_axis)


def _rounding_error(step: spec.Step) -> float:
    del step
    return 0.5


SPEC = spec.OperatorSpec(
    kind="AVERAGE_POOL_2D",
    schema=SCHEMA,
    check=check_pool,
    xnnpack=spec.unless_int4_or_int16,
    reference=_reference,
    macs=spec.no_macs,
    keeps=spec.Keeps.NOTHING,
    obstacle=spec.integers_only,
    interval=spec.increasing(_reference),
    norm=_norm,
    stacked=False,
    several=False,
    rounding_error=_rounding_error,
    int16_in=spec.KERNEL_SETS,
    missing_in=(),
    twin="average_pool_2d_twin",
)
