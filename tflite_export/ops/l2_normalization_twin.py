"""L2_NORMALIZATION in keras.ops, with straight-through gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras import ops

from tflite_export.ops.twin_roots import smooth_units, whole_units
from tflite_export.ops.twin_rounding import with_gradient
from tflite_export.ops.twin_site import Kernel, Site, clamp_range


def build(site: Site) -> Kernel:
    """The operator at a site."""
    low, high = clamp_range(site.operator, site.output)

    def kernel(operands: Sequence[Any]) -> Any:
        (values,) = operands
        exact = ops.clip(whole_units(ops.stop_gradient(values)), low, high)
        return with_gradient(exact, smooth_units(values))

    return kernel
