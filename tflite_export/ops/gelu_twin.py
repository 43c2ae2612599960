"""GELU in keras.ops."""

from __future__ import annotations

from keras import ops

from tflite_export.ops.gelu import SPEC, Gelu
from tflite_export.ops.twin_curves import looked_up
from tflite_export.ops.twin_site import Kernel, Site


def build(site: Site) -> Kernel:
    """Return the operator at a site."""
    options = site.operator.options
    assert isinstance(options, Gelu)
    return looked_up(site, SPEC, lambda reals: ops.gelu(reals, options.approximate))
