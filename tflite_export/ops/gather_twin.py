"""GATHER in keras.ops."""

from __future__ import annotations

from keras import ops

from tflite_export.ops.gather import places
from tflite_export.ops.twin_site import Kernel, Site


def build(site: Site) -> Kernel:
    """The operator at a site."""
    positions, axis = places(site.operator, site.inputs)
    return lambda operands: ops.take(operands[0], positions, axis=axis)
