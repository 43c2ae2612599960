"""HARD_SWISH: ``x * clip(x + 3, 0, 6) / 6`` in 16-bit fixed point, alike in every kernel set."""

from __future__ import annotations

import numpy as np

from tflite_export.ir.graph import NoOptions, Operator
from tflite_export.ir.requantization import fixed_point
from tflite_export.ir.schema import OperatorSchema
from tflite_export.ops import spec
from tflite_export.ops.tabulated import tabulated_spec

_FINE_BITS = 7
"""The operand is first multiplied by 128, which 16 bits have room for."""
_ONE = 1 << 15
_STEEPEST = 1.5


def _short(real: float) -> tuple[int, int]:
    """A positive factor as ``multiplier * 2**(shift - 15)`` with a 15-bit multiplier."""
    multiplier, shift = fixed_point(real)
    return min((multiplier + _ONE) >> 16, _ONE - 1), shift


def _product(a: np.ndarray, b: int) -> np.ndarray:
    """The high half of a doubled 16-bit product, rounded half away from zero."""
    product = a * b
    nudged = product + np.where(product >= 0, 1 << 14, 1 - (1 << 14))
    return np.where(nudged >= 0, nudged >> 15, -((-nudged) >> 15))


def _shifted(a: np.ndarray, amount: int) -> np.ndarray:
    """``a * 2**amount``, kept in 16 bits, or rounded half away from zero."""
    if amount >= 0:
        return np.clip(a << amount, -_ONE, _ONE - 1)
    mask = (1 << -amount) - 1
    return (a >> -amount) + ((a & mask) > (mask >> 1) + (a < 0))


def _table(step: spec.Step, centred: np.ndarray) -> np.ndarray:
    scale = step.inputs[0].scale * np.float32(2.0**-_FINE_BITS)
    onto_output, shift = _short(float(scale / step.output.scale))
    onto_gate, gate_shift = _short(float(scale / (np.float32(3.0) / np.float32(_ONE))))
    fine = centred << _FINE_BITS
    # The gate from -1 to 1; of a shift to the left the last bit comes after the product.
    gate = _product(_shifted(fine, gate_shift - 1) if gate_shift > 0 else fine, onto_gate)
    gate = _shifted(gate, min(gate_shift, 1))
    gate = (gate + _ONE) >> 1
    product = gate * _product(fine, onto_output)
    whole = np.where(product >= 0, product >> 15, -((-product) >> 15))
    return _shifted(whole, shift)


def _curve(operator: Operator, reals: np.ndarray) -> np.ndarray:
    del operator
    return reals * np.clip(reals + 3, 0, 6) / 6


SPEC = tabulated_spec(
    "HARD_SWISH",
    OperatorSchema(NoOptions, 91, "HardSwishOptions", version=1),
    (2.0**-8, 2.0**_FINE_BITS),
    _table,
    _curve,
    _STEEPEST,
    (),
)
