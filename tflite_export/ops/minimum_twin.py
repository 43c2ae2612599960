"""MINIMUM in keras.ops, with straight-through gradients."""

from __future__ import annotations

from keras import ops

from tflite_export.ops.twin_choices import choice
from tflite_export.ops.twin_site import Kernel, Site


def build(site: Site) -> Kernel:
    """The operator at a site."""
    return choice(site, ops.minimum, -1.0)
