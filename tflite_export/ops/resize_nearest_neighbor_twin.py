"""RESIZE_NEAREST_NEIGHBOR in keras.ops."""

from __future__ import annotations

from keras import ops

from tflite_export.ops.resize_nearest_neighbor import sources
from tflite_export.ops.twin_site import Kernel, Site


def build(site: Site) -> Kernel:
    """The operator at a site."""
    rows, columns = sources(site.inputs[0], site.output, site.operator.options)
    return lambda operands: ops.take(ops.take(operands[0], rows, axis=1), columns, axis=2)
