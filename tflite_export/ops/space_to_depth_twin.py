"""SPACE_TO_DEPTH in keras.ops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras import ops

from tflite_export.ops.blocks import side_of
from tflite_export.ops.twin_site import Kernel, Site


def build(site: Site) -> Kernel:
    """The operator at a site."""
    side = side_of(site.operator)
    _, height, width, depth = site.inputs[0].shape
    parts = (-1, height // side, side, width // side, side, depth)

    def kernel(operands: Sequence[Any]) -> Any:
        blocks = ops.transpose(ops.reshape(operands[0], parts), (0, 1, 3, 2, 4, 5))
        return ops.reshape(blocks, (-1, *site.output.shape[1:]))

    return kernel
