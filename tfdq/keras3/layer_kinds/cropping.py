"""Cropping2D: a part of an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from tfdq.description import Computation, Shape
from tfdq.keras3.graph import Node
from tfdq.keras3.layer_kinds.base import register
from tfdq.keras3.layer_kinds.registry import Kind, Request, channels_problem, register_kind
from tfdq.keras3.layer_kinds.shape import MovingLayer
from tflite_export.ir.graph import NoOptions
from tflite_export.lowering.lower import Call, lowering


@dataclass(frozen=True)
class Crop(Computation):
    """A part of an image.

    Attributes:
        first: row and column of the first pixel that is left.
    """

    first: tuple[int, int]


@lowering(Crop)
def lower_crop(call: Call) -> int:
    """Return the tensor of the part."""
    assembler, label = call.assembler, call.label
    begin = np.array([0, *call.computation.first, 0], np.int32)
    bounds = (("begin", begin), ("size", np.array(call.shape, np.int32)))
    constants = [assembler.constant(f"{label}/{name}", a, None, "int32") for name, a in bounds]
    output = assembler.value(label, call.shape, assembler.grid(call.source))
    return assembler.emit("SLICE", (call.source, *constants), output, NoOptions(), label)


@register
class QuantizedCropping2D(MovingLayer):
    """An image without some of its border.

    Args:
        cropping: ``((top, bottom), (left, right))``, rows and columns that are left out.
    """

    def __init__(self, cropping: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        (top, bottom), (left, right) = cropping
        self.cropping = ((int(top), int(bottom)), (int(left), int(right)))

    def move(self, q: Any) -> Any:
        """Return the part."""
        (top, bottom), (left, right) = self.cropping
        return q[:, top : q.shape[1] - bottom, left : q.shape[2] - right]

    def result_shape(self, shapes: Any) -> Shape:
        """Return the shape of the part."""
        batch, height, width, channels = shapes
        rows, columns = (sum(pair) for pair in self.cropping)
        return (batch, height - rows, width - columns, channels)

    def computation(self) -> Computation:
        """Return what the layer computes."""
        return Crop((self.cropping[0][0], self.cropping[1][0]))

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {**super().get_config(), "cropping": self.cropping}


def _quantize(request: Request) -> QuantizedCropping2D:
    return QuantizedCropping2D(cropping=request.layer.cropping, **request.common)


def _problem(node: Node) -> str | None:
    return channels_problem(node.layer)


register_kind(Kind((keras.layers.Cropping2D,), _quantize, _problem))
