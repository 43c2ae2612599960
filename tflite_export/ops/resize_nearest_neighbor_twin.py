"""RESIZE_NEAREST_NEIGHBOR in TensorFlow."""

from __future__ import annotations

import tensorflow as tf

from tflite_export.ops.resize_nearest_neighbor import NearestNeighbor, sources
from tflite_export.ops.twin_site import Kernel, Site


def build(site: Site) -> Kernel:
    """The operator at a site."""
    options = site.operator.options or NearestNeighbor()
    rows, columns = sources(site.inputs[0], site.output, options)
    return lambda operands: tf.gather(tf.gather(operands[0], rows, axis=1), columns, axis=2)
