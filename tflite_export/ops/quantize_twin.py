"""QUANTIZE in keras.ops, with straight-through gradients."""

from __future__ import annotations

import numpy as np

from tflite_export.ops.twin_rounding import to_centred
from tflite_export.ops.twin_site import Kernel, Site


def build(site: Site) -> Kernel:
    """The operator at a site."""
    if site.inputs[0].dtype != "float32":
        return lambda operands: operands[0]
    scale = np.array(site.output.scale, np.float32)
    divisor = site.constant(scale) if site.kernels.divides else None
    return lambda operands: to_centred(operands[0], site.output, divisor)
