"""DEQUANTIZE in keras.ops, with straight-through gradients."""

from __future__ import annotations

from tflite_export.ops.twin_site import Kernel, Site


def build(site: Site) -> Kernel:
    """The operator at a site."""
    scale = float(site.inputs[0].scale)
    return lambda operands: operands[0] * scale
