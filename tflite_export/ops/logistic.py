"""LOGISTIC: ``1 / (1 + exp(-x))`` in units of 1/256."""

from __future__ import annotations

import numpy as np

from tflite_export.ops import gemmlowp
from tflite_export.ops.curves import curve_spec


def curve(x: np.ndarray) -> np.ndarray:
    """Return the logistic function in float32; the exponential is rounded once."""
    with np.errstate(over="ignore"):  # Of an infinite power the function is 0.
        powers = np.exp(-x.astype(np.float64)).astype(np.float32)
    return (np.float32(1) / (np.float32(1) + powers)).astype(np.float32)


GRID = (1 / 256, -128)
"""Scale and zero point of the result."""

SPEC = curve_spec("LOGISTIC", (0, "NONE"), GRID, curve, gemmlowp.logistic, 0.25)
