"""L2_NORMALIZATION in keras.ops, with straight-through gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras import ops

from tflite_export.ops.l2_normalization import UNITS
from tflite_export.ops.twin_roots import units
from tflite_export.ops.twin_rounding import with_gradient
from tflite_export.ops.twin_site import Kernel, Site, clamp_range


def build(site: Site) -> Kernel:
    """The operator at a site."""
    low, high = clamp_range(site.operator, site.output)

    def kernel(operands: Sequence[Any]) -> Any:
        (values,) = operands
        entries = ops.cast(ops.stop_gradient(values), "int64")
        whole = units(entries, ops.sum(entries * entries, axis=-1, keepdims=True))
        exact = ops.clip(ops.cast(whole, "float32"), low, high)
        return with_gradient(exact, UNITS * ops.normalize(values, axis=-1, order=2))

    return kernel
