"""CONCATENATION in TensorFlow, with straight-through gradients."""

from __future__ import annotations

import tensorflow as tf

from tflite_export.ir.graph import Concatenation
from tflite_export.ops.twin_site import Kernel, Site


def build(site: Site) -> Kernel:
    """The operator at a site."""
    options = site.operator.options
    assert isinstance(options, Concatenation)
    return lambda operands: tf.concat(list(operands), axis=options.axis)
