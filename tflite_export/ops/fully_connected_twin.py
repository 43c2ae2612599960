"""FULLY_CONNECTED in keras.ops, with straight-through gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

from tflite_export.ir.graph import FullyConnected
from tflite_export.ops.fully_connected import rounding
from tflite_export.ops.twin_site import Kernel, Site
from tflite_export.ops.twin_weighted import weighted


def build(site: Site) -> Kernel:
    """The operator at a site."""
    assert isinstance(site.operator.options, FullyConnected)
    inputs = site.inputs[1].shape[1]

    def multiply(centred: Any, weights: Any) -> Any:
        return ops.matmul(centred, weights)

    fixed = rounding(site.operator, site.inputs, site.output, site.kernels)
    kernel = weighted(site, multiply, np.transpose, 0, fixed)
    return lambda operands: kernel([ops.reshape(operands[0], (-1, inputs))])
