"""RELU_N1_TO_1: an int8 activation, cut off below -1 and above 1, on a grid of its own."""

from __future__ import annotations

from tflite_export.ops.rectifiers import rectifier_spec

SPEC = rectifier_spec("RELU_N1_TO_1", version=1, low=-1.0, high=1.0)
