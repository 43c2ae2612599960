"""Images whose pixels are repeated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

from tfdq.description import Computation, Shape
from tfdq.keras3.layer_kinds.base import register
from tfdq.keras3.layer_kinds.shape import MovingLayer
from tflite_export.lowering.lower import Call, lowering
from tflite_export.ops.resizing import Resizing


@dataclass(frozen=True)
class RepeatPixels(Computation):
    """Each pixel of an image stands in the result as a block of pixels.

    Attributes:
        size: height and width of the block.
    """

    size: tuple[int, int]


@lowering(RepeatPixels)
def lower_repeat_pixels(call: Call) -> int:
    """Return the tensor of the enlarged image."""
    assembler, label = call.assembler, call.label
    size = np.array(call.shape[1:3], np.int32)
    constant = assembler.constant(f"{label}/size", size, None, "int32")
    output = assembler.value(label, call.shape, assembler.grid(call.source))
    # Of half-pixel centers no place lies between two pixels, whatever float32 makes of the ratio.
    options = Resizing(half_pixel_centers=True)
    return assembler.emit(
        "RESIZE_NEAREST_NEIGHBOR", (call.source, constant), output, options, label
    )


@register
class QuantizedUpSampling2D(MovingLayer):
    """An image whose pixels are repeated.

    Args:
        size: how often, along the height and along the width.
        to_size: the float layer gives images of one size, not of a multiple of what it gets.
    """

    def __init__(self, size: Any, to_size: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.size = (int(size[0]), int(size[1]))
        self.to_size = bool(to_size)

    def move(self, q: Any) -> Any:
        """Return the enlarged image."""
        return ops.repeat(ops.repeat(q, self.size[0], axis=1), self.size[1], axis=2)

    def result_shape(self, shapes: Any) -> Shape:
        """Return the shape of the enlarged image."""
        batch, height, width, channels = shapes
        return (batch, height * self.size[0], width * self.size[1], channels)

    def fits(self, built_for: Shape, other: Shape) -> bool:
        """Return whether the pixels of an image of the other size are repeated as often."""
        return not self.to_size or built_for[1:3] == other[1:3]

    def computation(self) -> Computation:
        """Return what the layer computes."""
        return RepeatPixels(self.size)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {**super().get_config(), "size": self.size, "to_size": self.to_size}
