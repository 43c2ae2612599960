"""MINIMUM in TensorFlow, with straight-through gradients."""

from __future__ import annotations

import tensorflow as tf

from tflite_export.ops.twin_choices import choice
from tflite_export.ops.twin_site import Kernel, Site


def build(site: Site) -> Kernel:
    """The operator at a site."""
    return choice(site, tf.minimum, -1.0)
