"""MUL in keras.ops, with straight-through gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from tflite_export.ir.requantization import requantization_scale, scale_away
from tflite_export.ops.twin_rounding import in_steps, rescaler
from tflite_export.ops.twin_site import Kernel, Site, both_operands, finish


def build(site: Site) -> Kernel:
    """The operator at a site."""
    left, right = site.inputs
    scale = requantization_scale(left.scale, right.scale.reshape(1), site.output.scale)
    fixed = None if site.xnnpack else rescaler(scale_away, scale.astype(np.float64))
    every = both_operands(site)

    def kernel(operands: Sequence[Any]) -> Any:
        first, second = every(operands)
        product = first * second
        steps = product * float(scale[0])
        if fixed is None:
            return finish(site, ops.round(steps), steps)
        if site.output.dtype == "int16":  # products beyond what float32 has exactly
            product = ops.cast(first, "int32") * ops.cast(second, "int32")
        return finish(site, in_steps(fixed, ops.stop_gradient(product)), steps)

    return kernel
