"""REDUCE_MIN in keras.ops; entries that tie share the gradient."""

from __future__ import annotations

from keras import ops

from tflite_export.ir.graph import Reduction
from tflite_export.ops.moving import axes_of
from tflite_export.ops.twin_site import Kernel, Site


def build(site: Site) -> Kernel:
    """The operator at a site."""
    options = site.operator.options
    assert isinstance(options, Reduction)
    axes = axes_of(site.inputs[1], len(site.inputs[0].shape))
    return lambda operands: ops.min(operands[0], axes, options.keep_dims)
