"""MIRROR_PAD in keras.ops, with straight-through gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from keras import ops

from tflite_export.ir.graph import MirrorPadding
from tflite_export.ops.twin_site import Kernel, Site


def build(site: Site) -> Kernel:
    """The operator at a site."""
    options = site.operator.options
    assert isinstance(options, MirrorPadding)
    mode: Literal["reflect", "symmetric"] = "reflect" if options.mode == "REFLECT" else "symmetric"
    # taken entry by entry: PyTorch has no symmetric padding
    places = [
        (axis, np.pad(np.arange(size), (int(before), int(after)), mode))
        for axis, (size, (before, after)) in enumerate(
            zip(site.inputs[0].shape, np.asarray(site.inputs[1].data), strict=True)
        )
        if before or after
    ]

    def kernel(operands: Sequence[Any]) -> Any:
        (values,) = operands
        for axis, taken in places:
            values = ops.take(values, taken, axis=axis)
        return values

    return kernel
