"""PADV2 in keras.ops."""

from __future__ import annotations

import numpy as np
from keras import ops

from tflite_export.ops.twin_site import Kernel, Site


def build(site: Site) -> Kernel:
    """The operator at a site."""
    _, amounts, value = site.inputs
    pairs = np.asarray(amounts.data).tolist()
    centred = float(np.asarray(value.data).reshape(-1)[0]) - (
        0 if value.quantization is None else value.zero_point
    )
    return lambda operands: ops.pad(operands[0], pairs, constant_values=centred)
