"""GELU in TensorFlow."""

from __future__ import annotations

import tensorflow as tf

from tflite_export.ops.gelu import SPEC, Gelu
from tflite_export.ops.twin_curves import looked_up
from tflite_export.ops.twin_site import Kernel, Site


def build(site: Site) -> Kernel:
    """Return the operator at a site."""
    options = site.operator.options
    assert isinstance(options, Gelu)
    return looked_up(site, SPEC, lambda reals: tf.nn.gelu(reals, options.approximate))
