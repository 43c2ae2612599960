"""LEAKY_RELU in keras.ops, with straight-through gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from tflite_export.ir.requantization import scale_away
from tflite_export.ops.leaky_relu import UNIT, real_factors, whole_factors
from tflite_export.ops.twin_rounding import in_steps, rescaler
from tflite_export.ops.twin_site import Kernel, Site, finish


def build(site: Site) -> Kernel:
    """The operator at a site."""
    source = site.inputs[0]
    real = real_factors(site.operator, source, site.output)
    whole = [float(factor) for factor in whole_factors(site.operator, source, site.output)]
    fixed = [rescaler(scale_away, np.array([factor], np.float64)) for factor in real]

    def kernel(operands: Sequence[Any]) -> Any:
        (values,) = operands
        positive = values >= 0
        if site.xnnpack:
            # Whole numbers below 2^24, and a power of two: float32 has them exactly.
            steps = ops.where(positive, values * whole[0], values * whole[1]) / UNIT
            return finish(site, ops.floor(steps + 0.5), steps)
        steps = ops.where(positive, values * float(real[0]), values * float(real[1]))
        integers = ops.stop_gradient(values)
        exact = ops.where(positive, *(in_steps(factor, integers) for factor in fixed))
        return finish(site, exact, steps)

    return kernel
