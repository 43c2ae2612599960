"""DEPTH_TO_SPACE in TensorFlow."""

from __future__ import annotations

import tensorflow as tf

from tflite_export.ops.blocks import side_of
from tflite_export.ops.twin_site import Kernel, Site


def build(site: Site) -> Kernel:
    """The operator at a site."""
    side = side_of(site.operator)
    if side == 1:  # which TensorFlow refuses
        return lambda operands: tf.identity(operands[0])
    return lambda operands: tf.nn.depth_to_space(operands[0], side)
