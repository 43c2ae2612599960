"""QUANTIZE in keras.ops, of floats and of integers of another grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from tflite_export.ir.graph import Tensor
from tflite_export.ir.requantization import scale_away, scale_upward
from tflite_export.ops.quantize import LANES, UNIT, in_vectors, ratio, whole_ratio
from tflite_export.ops.twin_rounding import in_steps, rescaler, to_centred
from tflite_export.ops.twin_site import Kernel, Site, finish


def build(site: Site) -> Kernel:
    """The operator at a site."""
    (source,) = site.inputs
    return _of_floats(site) if source.dtype == "float32" else _of_integers(site, source)


def _of_floats(site: Site) -> Kernel:
    scale = np.array(site.output.scale, np.float32)
    divisor = site.constant(scale) if site.kernels.divides else None
    return lambda operands: to_centred(operands[0], site.output, divisor)


def _of_integers(site: Site, source: Tensor) -> Kernel:
    real, whole = ratio(source, site.output), float(whole_ratio(source, site.output))
    away, upward = (rescaler(how, np.array([real])) for how in (scale_away, scale_upward))
    vectors = in_vectors(site.kernels, source, site.output)
    low, high = (np.array([end * real]) for end in site.spans[0])

    def kernel(operands: Sequence[Any]) -> Any:
        (values,) = operands
        steps = values * real
        if site.xnnpack:
            # Whole numbers below 2^24, and a power of two: float32 has them exactly.
            return finish(site, ops.floor(values * whole / UNIT + 0.5), steps, (low, high))
        integers = ops.stop_gradient(values)
        exact = in_steps(away, integers)
        if vectors:
            count = ops.size(values)
            places = ops.reshape(ops.arange(count, dtype="int32"), ops.shape(values))
            inside = places < count // LANES * LANES
            exact = ops.where(inside, in_steps(upward, integers), exact)
        return finish(site, exact, steps, (low, high))

    return kernel
