"""SPLIT in TensorFlow."""

from __future__ import annotations

import tensorflow as tf

from tflite_export.ops.split import axis_of
from tflite_export.ops.twin_site import Kernel, Site


def build(site: Site) -> Kernel:
    """The operator at a site."""
    axis, count = axis_of(site.inputs), len(site.operator.outputs)
    return lambda operands: tf.split(operands[0], count, axis)[site.place]
