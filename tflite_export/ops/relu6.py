"""RELU6: an int8 activation, cut off below 0 and above 6, on a grid of its own."""

from __future__ import annotations

from tflite_export.ops import spec
from tflite_export.ops.rectifiers import rectifier_spec

SPEC = rectifier_spec("RELU6", version=2, low=0.0, high=6.0, int16_in=spec.KERNEL_SETS)
