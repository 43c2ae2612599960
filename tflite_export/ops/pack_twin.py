"""PACK in TensorFlow."""

from __future__ import annotations

import tensorflow as tf

from tflite_export.ops.pack import Pack
from tflite_export.ops.twin_site import Kernel, Site


def build(site: Site) -> Kernel:
    """The operator at a site."""
    options = site.operator.options
    assert isinstance(options, Pack)
    return lambda operands: tf.stack(list(operands), axis=options.axis)
