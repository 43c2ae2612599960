"""STRIDED_SLICE in keras.ops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from tflite_export.ops.strided_slice import parts
from tflite_export.ops.twin_site import Kernel, Site


def build(site: Site) -> Kernel:
    """The operator at a site."""
    taken = parts(site.operator.options, site.inputs)
    # PyTorch has no slices that go backwards: their places are taken one by one
    backwards = [
        (axis, np.arange(site.inputs[0].shape[axis])[part])
        for axis, part in enumerate(taken)
        if isinstance(part, slice) and part.step is not None and part.step < 0
    ]
    forwards = tuple(
        slice(None) if axis in dict(backwards) else part for axis, part in enumerate(taken)
    )

    def kernel(operands: Sequence[Any]) -> Any:
        (values,) = operands
        for axis, places in backwards:
            values = ops.take(values, places, axis=axis)
        return values[forwards]

    return kernel
