"""TRANSPOSE in keras.ops."""

from __future__ import annotations

from keras import ops

from tflite_export.ops.transpose import order
from tflite_export.ops.twin_site import Kernel, Site


def build(site: Site) -> Kernel:
    """The operator at a site."""
    axes = order(site.inputs)
    return lambda operands: ops.transpose(operands[0], axes)
