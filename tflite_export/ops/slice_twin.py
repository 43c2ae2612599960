"""SLICE in TensorFlow, with straight-through gradients."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tflite_export.ops.twin_site import Kernel, Site


def build(site: Site) -> Kernel:
    """The operator at a site."""
    begin, size = (np.array(tensor.data) for tensor in site.inputs[1:])
    size[0] = -1
    return lambda operands: tf.slice(operands[0], begin, size)
