"""UNPACK in TensorFlow."""

from __future__ import annotations

import tensorflow as tf

from tflite_export.ops.twin_site import Kernel, Site
from tflite_export.ops.unpack import axis_of


def build(site: Site) -> Kernel:
    """The operator at a site."""
    axis = axis_of(site.operator, site.inputs[0])
    return lambda operands: tf.gather(operands[0], site.place, axis=axis)
