"""L2_NORMALIZATION in keras.ops, with straight-through gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras import ops

from tflite_export.ops.l2_normalization import UNITS
from tflite_export.ops.twin_roots import units
from tflite_export.ops.twin_rounding import in_steps, with_gradient
from tflite_export.ops.twin_site import Kernel, Site, clamp_range


def build(site: Site) -> Kernel:
    """The operator at a site."""
    low, high = clamp_range(site.operator, site.output)

    def kernel(operands: Sequence[Any]) -> Any:
        (values,) = operands
        exact = ops.clip(in_steps(_of_lengths, ops.stop_gradient(values)), low, high)
        return with_gradient(exact, UNITS * ops.normalize(values, axis=-1, order=2))

    return kernel


def _of_lengths(centred: Any) -> Any:
    entries = ops.cast(centred, "int64")
    return units(entries, ops.sum(entries * entries, axis=-1, keepdims=True))
