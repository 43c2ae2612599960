"""CONCATENATION in keras.ops, with straight-through gradients."""

from __future__ import annotations

from keras import ops

from tflite_export.ir.graph import Concatenation
from tflite_export.ops.twin_site import Kernel, Site


def build(site: Site) -> Kernel:
    """The operator at a site."""
    options = site.operator.options
    assert isinstance(options, Concatenation)
    return lambda operands: ops.concatenate(list(operands), axis=options.axis)
