"""SUB in keras.ops, with straight-through gradients."""

from __future__ import annotations

from tflite_export.ir.requantization import scale_away
from tflite_export.ops.twin_site import Kernel, Site
from tflite_export.ops.twin_sums import (
    kernel_of,
    sum_of_builtin,
    sum_of_int16,
    sum_of_xnnpack,
)


def build(site: Site) -> Kernel:
    """The operator at a site."""
    if site.output.dtype == "int16":
        return kernel_of(site, sum_of_int16(site, -1), (1, -1))
    exact = sum_of_xnnpack(site) if site.xnnpack else sum_of_builtin(site, scale_away)
    return kernel_of(site, exact, (1, -1))
