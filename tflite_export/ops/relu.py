"""RELU: an int8 activation, the positive part, on a grid of its own."""

from __future__ import annotations

import math

from tflite_export.ops import spec
from tflite_export.ops.rectifiers import rectifier_spec

SPEC = rectifier_spec("RELU", version=2, low=0.0, high=math.inf, int16_in=spec.KERNEL_SETS)
