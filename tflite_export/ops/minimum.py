"""MINIMUM: the smaller of two operands, entry by entry."""

from __future__ import annotations

import numpy as np

from tflite_export.ir.graph import NoOptions
from tflite_export.ir.schema import OperatorSchema
from tflite_export.ops import broadcasting, choices, spec


def _reference(step: spec.Step, operands: list[np.ndarray]) -> np.ndarray:
    del step
    return np.minimum(*operands)


SPEC = spec.OperatorSpec(
    kind="MINIMUM",
    schema=OperatorSchema(NoOptions, 39, "MaximumMinimumOptions"),
    check=choices.check_choice,
    xnnpack=spec.unless_int4_or_int16,
    reference=_reference,
    macs=spec.no_macs,
    keeps=spec.Keeps.INTEGERS,
    obstacle=spec.any_type,
    interval=spec.increasing(_reference),
    norm=broadcasting.norm,
    stacked=True,
    several=False,
    rounding_error=spec.exact,
    int16_in=(),
    missing_in=(),
    twin="minimum_twin",
)
