"""GELU: ``x`` times the normal distribution's share below it, or tanh's approximation of that."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tflite_export.ir.graph import Operator, Options
from tflite_export.ir.schema import OperatorSchema, OptionField
from tflite_export.ops import checks, spec
from tflite_export.ops.tabulated import in_float32, tabulated_spec

_STEEPEST = 1.13
"""Near the root of 2, where both forms have a slope of 1.129."""


@dataclass(frozen=True)
class Gelu(Options):
    """Options of ``GELU``: whether tanh stands for the normal distribution."""

    approximate: bool = False


def _curve(operator: Operator, reals: np.ndarray) -> np.ndarray:
    assert isinstance(operator.options, Gelu)
    x = reals.astype(np.float64)
    if operator.options.approximate:
        gate = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    else:
        gate = np.array([math.erf(value) for value in x / math.sqrt(2)])
    return 0.5 * x * (1 + gate)


def _table(step: spec.Step, centred: np.ndarray) -> np.ndarray:
    options = step.operator.options
    assert isinstance(options, Gelu)
    return in_float32(step, centred, _by_tanh if options.approximate else _by_erf)


def _by_erf(x: np.ndarray) -> np.ndarray:
    """The curve with each step rounded to float32; 1 + erf is taken as erfc of the negative."""
    inner = x * np.float32(-math.sqrt(0.5))
    gate = np.array([math.erfc(value) for value in inner.astype(np.float64)]).astype(np.float32)
    return np.float32(0.5) * x * gate


def _by_tanh(x: np.ndarray) -> np.ndarray:
    """The approximation with each step rounded to float32."""
    cubic = x + np.float32(0.044715) * x * x * x
    inner = np.float32(math.sqrt(2 / math.pi)) * cubic
    gate = np.tanh(inner.astype(np.float64)).astype(np.float32)
    return np.float32(0.5) * x * (np.float32(1.0) + gate)


SPEC = tabulated_spec(
    "GELU",
    OperatorSchema(Gelu, 116, "GeluOptions", (OptionField("approximate", 0, "bool"),)),
    (checks.SMALLEST_FACTOR, checks.LARGEST_FACTOR),
    _table,
    _curve,
    _STEEPEST,
    (),
)
