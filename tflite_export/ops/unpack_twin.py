"""UNPACK in keras.ops."""

from __future__ import annotations

from keras import ops

from tflite_export.ops.twin_site import Kernel, Site
from tflite_export.ops.unpack import axis_of


def build(site: Site) -> Kernel:
    """The operator at a site."""
    axis = axis_of(site.operator, site.inputs[0])
    return lambda operands: ops.take(operands[0], site.place, axis=axis)
