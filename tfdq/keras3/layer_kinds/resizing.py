"""Images of another size: UpSampling2D with interpolation, Resizing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from tfdq.description import Computation, Pair, Shape
from tfdq.keras3.graph import Node
from tfdq.keras3.layer_kinds.base import integer_shape, register
from tfdq.keras3.layer_kinds.registry import Kind, Request, channels_problem, register_kind
from tfdq.keras3.layer_kinds.shape import MovingLayer
from tfdq.keras3.layer_kinds.upsampling import QuantizedUpSampling2D
from tfdq.keras3.rounding import with_gradient_of
from tflite_export.lowering import lower
from tflite_export.ops.resize_bilinear import Mix, in_float32
from tflite_export.ops.resizing import Resizing

_PLACES = Resizing(half_pixel_centers=True)


@dataclass(frozen=True)
class Interpolated(Computation):
    """An image of the call's size, each pixel mixed of up to four."""


@lower.lowering(Interpolated)
def lower_interpolated(call: lower.Call) -> int:
    """Return the tensor of the image."""
    assembler, label = call.assembler, call.label
    size = np.array(call.shape[1:3], np.int32)
    constant = assembler.constant(f"{label}/size", size, None, "int32")
    output = assembler.value(label, call.shape, assembler.grid(call.source))
    return assembler.emit("RESIZE_BILINEAR", (call.source, constant), output, _PLACES, label)


@register
class QuantizedBilinear(MovingLayer):
    """An image of another size, by bilinear interpolation, on the grid of its source.

    The shares of the pixels have eleven bits, as the default kernels round them; the sum is in
    32 bits, and rounded once, ties upward.

    Args:
        size: height and width of the result.
    """

    def __init__(self, size: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.size: Pair = (int(size[0]), int(size[1]))

    def build(self, input_shape: Any) -> None:
        """Find what each row and column is mixed of."""
        shape = integer_shape(input_shape)
        self._mixes = [
            in_float32(int(size or 0), result, _PLACES)
            for size, result in zip(shape[1:3], self.size, strict=True)
        ]

    def move(self, q: Any) -> Any:
        """Return the resized image."""
        rows, columns = self._mixes
        whole = rows.unit * columns.unit
        sums = ops.cast(ops.stop_gradient(q), "int32")
        smooth = q
        for axis, mix in ((1, rows), (2, columns)):
            sums = _mixed(sums, mix, axis, "int32")
            smooth = _mixed(smooth, mix, axis, "float32") / float(mix.unit)
        shift = int(whole).bit_length() - 1
        exact = ops.right_shift(sums + whole // 2, shift)
        return with_gradient_of(ops.cast(exact, "float32"), smooth)

    def result_shape(self, shapes: Any) -> Shape:
        """Return the shape of the resized image."""
        return (shapes[0], *self.size, shapes[3])

    def fits(self, built_for: Shape, other: Shape) -> bool:
        """Return whether the size is the same: the result has a size, not a factor."""
        return built_for == other

    def computation(self) -> Computation:
        """Return what the layer computes."""
        return Interpolated()

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {**super().get_config(), "size": self.size}


def _mixed(values: Any, mix: Mix, axis: int, dtype: str) -> Any:
    """Return each pixel along an axis times its share, and the next one times the rest."""
    shares = ops.convert_to_tensor(mix.share.reshape(-1, *(1,) * (3 - axis)), dtype)
    first, second = (
        ops.take(values, ops.convert_to_tensor(places, "int32"), axis=axis)
        for places in (mix.first, mix.second)
    )
    return first * (mix.unit - shares) + second * shares


def _quantize(request: Request) -> MovingLayer:
    size = request.step.node.shape[1:3]
    if request.layer.interpolation == "bilinear":
        return QuantizedBilinear(size, **request.common)
    height, width = request.source_shapes[0][1:3]
    return QuantizedUpSampling2D(
        (size[0] // height, size[1] // width),
        to_size=isinstance(request.layer, keras.layers.Resizing),
        **request.common,
    )


def _problem(node: Node) -> str | None:
    layer = node.layer
    if layer.interpolation not in ("nearest", "bilinear"):
        return f'interpolation={layer.interpolation!r}; use "bilinear" or "nearest"'
    for name in ("crop_to_aspect_ratio", "pad_to_aspect_ratio", "antialias"):
        if getattr(layer, name, False):
            return f"{name}=True; crop or pad with a layer of its own"
    source = node.arguments[0].shape[1:3]
    whole = all(
        (after or 0) % (before or 1) == 0
        for before, after in zip(source, node.shape[1:3], strict=True)
    )
    if layer.interpolation == "nearest" and not whole:
        return f"nearest pixels of {source} for {node.shape[1:3]}; use whole multiples, or bilinear"
    return channels_problem(layer)


register_kind(Kind((keras.layers.UpSampling2D, keras.layers.Resizing), _quantize, _problem))
