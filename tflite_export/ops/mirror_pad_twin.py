"""MIRROR_PAD in TensorFlow, with straight-through gradients."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tflite_export.ir.graph import MirrorPadding
from tflite_export.ops.twin_site import Kernel, Site


def build(site: Site) -> Kernel:
    """The operator at a site."""
    options = site.operator.options
    assert isinstance(options, MirrorPadding)
    amounts = np.asarray(site.inputs[1].data)
    return lambda operands: tf.pad(operands[0], amounts, options.mode)
