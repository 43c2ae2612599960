"""ELU in keras.ops."""

from __future__ import annotations

from keras import ops

from tflite_export.ops.elu import SPEC
from tflite_export.ops.twin_curves import looked_up
from tflite_export.ops.twin_site import Kernel, Site


def build(site: Site) -> Kernel:
    """Return the operator at a site."""
    return looked_up(site, SPEC, ops.elu)
