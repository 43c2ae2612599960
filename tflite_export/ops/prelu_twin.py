"""PRELU in keras.ops, with straight-through gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from tflite_export.ir.requantization import scale_away
from tflite_export.ops.prelu import factors
from tflite_export.ops.twin_rounding import in_steps, rescaler
from tflite_export.ops.twin_site import Kernel, Site, both_operands, finish


def build(site: Site) -> Kernel:
    """The operator at a site."""
    source, slopes = site.inputs
    real = factors(source, slopes, site.output)
    above, below = (rescaler(scale_away, np.array([factor])) for factor in real)
    every = both_operands(site)

    def kernel(operands: Sequence[Any]) -> Any:
        values, factors_below = every(operands)
        products = values * factors_below
        positive = values >= 0
        exact = ops.where(
            positive,
            in_steps(above, ops.stop_gradient(values)),
            in_steps(below, ops.stop_gradient(products)),
        )
        steps = ops.where(positive, values * float(real[0]), products * float(real[1]))
        return finish(site, exact, steps)

    return kernel
