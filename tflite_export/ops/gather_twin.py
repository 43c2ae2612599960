"""GATHER in TensorFlow."""

from __future__ import annotations

import tensorflow as tf

from tflite_export.ops.gather import places
from tflite_export.ops.twin_site import Kernel, Site


def build(site: Site) -> Kernel:
    """The operator at a site."""
    positions, axis = places(site.operator, site.inputs)
    return lambda operands: tf.gather(operands[0], positions, axis=axis)
