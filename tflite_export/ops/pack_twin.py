"""PACK in keras.ops."""

from __future__ import annotations

from keras import ops

from tflite_export.ops.pack import Pack
from tflite_export.ops.twin_site import Kernel, Site


def build(site: Site) -> Kernel:
    """The operator at a site."""
    options = site.operator.options
    assert isinstance(options, Pack)
    return lambda operands: ops.stack(list(operands), axis=options.axis)
