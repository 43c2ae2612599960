"""SPLIT in keras.ops."""

from __future__ import annotations

from keras import ops

from tflite_export.ops.split import axis_of
from tflite_export.ops.twin_site import Kernel, Site


def build(site: Site) -> Kernel:
    """The operator at a site."""
    axis, count = axis_of(site.inputs), len(site.operator.outputs)
    return lambda operands: ops.split(operands[0], count, axis)[site.place]
