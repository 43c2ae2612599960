"""EXPAND_DIMS in keras.ops."""

from __future__ import annotations

from keras import ops

from tflite_export.ops.twin_site import Kernel, Site


def build(site: Site) -> Kernel:
    """The operator at a site."""
    shape = [-1, *site.output.shape[1:]]
    return lambda operands: ops.reshape(operands[0], shape)
