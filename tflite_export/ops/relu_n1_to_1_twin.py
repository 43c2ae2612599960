"""RELU_N1_TO_1 in TensorFlow."""

from __future__ import annotations

import tensorflow as tf

from tflite_export.ops.relu_n1_to_1 import SPEC
from tflite_export.ops.twin_curves import looked_up
from tflite_export.ops.twin_site import Kernel, Site


def build(site: Site) -> Kernel:
    """Return the operator at a site."""
    return looked_up(site, SPEC, lambda reals: tf.clip_by_value(reals, -1.0, 1.0))
