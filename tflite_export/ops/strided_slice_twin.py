"""STRIDED_SLICE in TensorFlow."""

from __future__ import annotations

from tflite_export.ops.strided_slice import parts
from tflite_export.ops.twin_site import Kernel, Site


def build(site: Site) -> Kernel:
    """The operator at a site."""
    taken = tuple(parts(site.operator.options, site.inputs))
    return lambda operands: operands[0][taken]
