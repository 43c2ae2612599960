"""TANH in units of 1/128."""

from __future__ import annotations

import numpy as np

from tflite_export.ops import gemmlowp
from tflite_export.ops.curves import curve_spec


def curve(x: np.ndarray) -> np.ndarray:
    """Return tanh, rounded once to float32."""
    return np.tanh(x.astype(np.float64)).astype(np.float32)


GRID = (1 / 128, 0)
"""Scale and zero point of the result."""

SPEC = curve_spec("TANH", (0, "NONE"), GRID, curve, gemmlowp.tanh, 1.0)
