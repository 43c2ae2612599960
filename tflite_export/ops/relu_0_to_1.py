"""RELU_0_TO_1: an int8 activation, cut off below 0 and above 1, on a grid of its own."""

from __future__ import annotations

from tflite_export.ops.rectifiers import rectifier_spec

SPEC = rectifier_spec("RELU_0_TO_1", version=1, low=0.0, high=1.0)
