"""ARG_MAX in keras.ops; a position has no gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras import ops

from tflite_export.ops.arg_max import axis_of_positions
from tflite_export.ops.twin_site import Kernel, Site


def build(site: Site) -> Kernel:
    """The operator at a site."""
    axis = axis_of_positions(site.inputs[1], site.inputs[0])
    shape = [1] * len(site.inputs[0].shape)
    count = shape[axis] = site.inputs[0].shape[axis]

    def kernel(operands: Sequence[Any]) -> Any:
        """The least position of those with the largest entry: backends break ties differently."""
        values = ops.stop_gradient(operands[0])
        largest = values == ops.max(values, axis=axis, keepdims=True)
        positions = ops.reshape(ops.arange(count, dtype="float32"), shape)
        return ops.min(ops.where(largest, positions, float(count)), axis=axis)

    return kernel
