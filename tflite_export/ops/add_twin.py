"""ADD in keras.ops, with straight-through gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras import ops

from tflite_export.ir.requantization import scale_away
from tflite_export.ops.spec import Step
from tflite_export.ops.twin_site import Kernel, Site
from tflite_export.ops.twin_sums import (
    Sums,
    inside_vectors,
    kernel_of,
    sum_of_builtin,
    sum_of_int16,
    sum_of_xnnpack,
)
from tflite_export.ops.vectors import vectors_of


def build(site: Site) -> Kernel:
    """The operator at a site."""
    if site.output.dtype == "int16":
        return kernel_of(site, sum_of_int16(site, 1), (1, 1))
    return kernel_of(site, sum_of_xnnpack(site) if site.xnnpack else _builtin(site), (1, 1))


def _builtin(site: Site) -> Sums:
    rest = sum_of_builtin(site, scale_away)
    if not site.kernels.sixteens:
        return rest
    kind = vectors_of(Step(site.operator, site.inputs, site.output, site.kernels, site.xnnpack))
    vectors = sum_of_builtin(site, kind.rounding)

    def mixed(terms: Sequence[Any]) -> Any:
        result = rest(terms)
        return ops.where(inside_vectors(site, result), vectors(terms), result)

    return mixed
