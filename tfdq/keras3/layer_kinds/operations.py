"""Operations of keras.ops that are layers: means, maxima, pools, reshapes, clips, slices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from tfdq.description import Computation, Shape
from tfdq.keras3.graph import Node
from tfdq.keras3.layer_kinds.base import register
from tfdq.keras3.layer_kinds.registry import Kind, Request, operation_of, register_kind
from tfdq.keras3.layer_kinds.shape import MovingLayer
from tflite_export.ir.graph import NoOptions
from tflite_export.lowering import lower

Layers = list[keras.layers.Layer]
_IMAGE = keras.KerasTensor((None, 4, 4, 1))


@dataclass(frozen=True)
class Part(Computation):
    """A part of a tensor, of the call's shape.

    Attributes:
        first: along each axis but the batch, where the part begins.
    """

    first: tuple[int, ...]


@lower.lowering(Part)
def lower_part(call: lower.Call) -> int:
    """Return the tensor of the part."""
    assembler, label = call.assembler, call.label
    begin = np.array([0, *call.computation.first], np.int32)
    bounds = (("begin", begin), ("size", np.array(call.shape, np.int32)))
    constants = [assembler.constant(f"{label}/{name}", a, None, "int32") for name, a in bounds]
    output = assembler.value(label, call.shape, assembler.grid(call.source))
    return assembler.emit("SLICE", (call.source, *constants), output, NoOptions(), label)


@register
class QuantizedSlice(MovingLayer):
    """A part of a tensor.

    Args:
        first: along each axis but the batch, where the part begins.
        size: likewise how long it is; -1: to the end.
    """

    def __init__(self, first: Any, size: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.first = tuple(int(position) for position in first)
        self.size = tuple(int(count) for count in size)

    def move(self, q: Any) -> Any:
        """Return the part."""
        pairs = zip(self.first, self.result_shape(tuple(q.shape))[1:], strict=True)
        return q[(slice(None), *(slice(start, start + int(count or 0)) for start, count in pairs))]

    def result_shape(self, shapes: Any) -> Shape:
        """Return the shape of the part."""
        axes = zip(shapes[1:], self.first, self.size, strict=True)
        return (
            shapes[0],
            *((whole or 0) - start if count == -1 else count for whole, start, count in axes),
        )

    def fits(self, built_for: Shape, other: Shape) -> bool:
        """Return whether the axes whose size says what is taken have the size that they had."""
        axes = zip(built_for[1:], other[1:], self.first, self.size, strict=True)
        return all(
            was == found or (count == -1 and start < (found or 0))
            for was, found, start, count in axes
        )

    def computation(self) -> Computation:
        """Return what the layer computes."""
        return Part(self.first)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {**super().get_config(), "first": self.first, "size": self.size}


def _source(node: Node) -> tuple[int | None, ...]:
    return tuple(node.arguments[0].shape)


def _slices(node: Node) -> list[slice] | None:
    """Return what an index takes of each axis, or None if it is no range of each."""
    index = node.arguments[1]
    given = list(index) if isinstance(index, (tuple, list)) else [index]
    rank = len(_source(node))
    if given.count(Ellipsis) == 1:
        place = given.index(Ellipsis)
        given[place : place + 1] = [slice(None)] * (rank - len(given) + 1)
    given += [slice(None)] * (rank - len(given))
    plain = all(isinstance(entry, slice) and entry.step in (None, 1) for entry in given)
    return given if plain and given[0] == slice(None) else None


def _quantize_slice(request: Request) -> QuantizedSlice:
    node = request.step.node
    slices = _slices(node)
    assert slices is not None
    sizes = _source(node)[1:]
    first = [
        entry.indices(int(size or 0))[0] for entry, size in zip(slices[1:], sizes, strict=True)
    ]
    counts = [
        -1 if _to_the_end(entry, int(size or 0)) else count
        for entry, size, count in zip(slices[1:], sizes, node.shape[1:], strict=True)
    ]
    return QuantizedSlice(first, counts, **request.common)


def _to_the_end(entry: slice, size: int) -> bool:
    """Return whether a range of an axis is all but its first entries, whatever the size is."""
    return entry.stop is None and 0 <= (entry.start or 0) < size


def _slice_problem(node: Node) -> str | None:
    if _slices(node) is None:
        return (
            f"the index {node.arguments[1]!r}; ranges of step 1 are taken, of all axes but the "
            "batch, such as x[:, 2:6, :, 8:]"
        )
    return None


def _reduction(image: type, sequence: type) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return parts and problem of an operation that is a global pool."""

    def kind_of(node: Node) -> type | None:
        rank, axes = len(_source(node)), node.layer.axis
        axes = [axes] if isinstance(axes, int) else list(axes or ())
        found = sorted(axis % rank for axis in axes)
        return {(4, (1, 2)): image, (3, (1,)): sequence}.get((rank, tuple(found)))

    def parts(node: Node) -> Layers:
        kind = kind_of(node)
        assert kind is not None
        return [kind(keepdims=node.layer.keepdims, name=node.layer.name)]

    def problem(node: Node) -> str | None:
        if kind_of(node) is None:
            return (
                f"axis={node.layer.axis} of a tensor of shape {_source(node)}; the axes of an "
                "image, (1, 2), or the steps of a sequence, 1, are reduced"
            )
        return None

    return parts, problem


def _pool(kind: type) -> Callable[[Node], Layers]:
    def parts(node: Node) -> Layers:
        names = ("pool_size", "strides", "padding", "data_format", "name")
        return [kind(**{name: getattr(node.layer, name) for name in names})]

    return parts


def _pool_problem(node: Node) -> str | None:
    return None if len(node.shape) == 4 else "a pool of something else than images; use a layer"


def _reshaped(node: Node) -> Layers:
    return [keras.layers.Reshape(node.shape[1:], name=node.layer.name)]


def _reshape_problem(node: Node) -> str | None:
    source = _source(node)
    counts = [np.prod([size or 0 for size in shape[1:]]) for shape in (source, node.shape)]
    if counts[0] != counts[1]:
        return f"a reshape of {source} to {node.shape}; the batch stays the first axis"
    return None


def _clipped(node: Node) -> Layers:
    return [keras.layers.ReLU(max_value=float(node.layer.x_max), name=node.layer.name)]


def _clip_problem(node: Node) -> str | None:
    low, high = node.layer.x_min, node.layer.x_max
    if low != 0 or not isinstance(high, (int, float)) or not high > 0:
        return f"a clip to [{low}, {high}]; [0, a positive number] is taken"
    return None


def _softmax(node: Node) -> Layers:
    return [keras.layers.Softmax(node.layer.axis, name=node.layer.name)]


def _gelu(node: Node) -> Layers:
    return [keras.layers.Activation("gelu", name=node.layer.name)]


def _gelu_problem(node: Node) -> str | None:
    if node.layer.approximate:
        return "approximate=True; use approximate=False"
    return None


def _leaky_relu(node: Node) -> Layers:
    return [keras.layers.LeakyReLU(node.layer.negative_slope, name=node.layer.name)]


_L = keras.layers
_MEAN = _reduction(_L.GlobalAveragePooling2D, _L.GlobalAveragePooling1D)
_MAX = _reduction(_L.GlobalMaxPooling2D, _L.GlobalMaxPooling1D)
for _symbol, _parts, _problem in (
    (keras.ops.mean(_IMAGE, axis=1), *_MEAN),
    (keras.ops.max(_IMAGE, axis=1), *_MAX),
    (keras.ops.average_pool(_IMAGE, 2), _pool(_L.AveragePooling2D), _pool_problem),
    (keras.ops.max_pool(_IMAGE, 2), _pool(_L.MaxPooling2D), _pool_problem),
    (keras.ops.reshape(_IMAGE, (-1, 16)), _reshaped, _reshape_problem),
    (keras.ops.expand_dims(_IMAGE, 1), _reshaped, _reshape_problem),
    (keras.ops.squeeze(_IMAGE, 3), _reshaped, _reshape_problem),
    (keras.ops.clip(_IMAGE, 0, 1), _clipped, _clip_problem),
    (keras.ops.softmax(_IMAGE, axis=1), _softmax, lambda node: None),
    (keras.ops.leaky_relu(_IMAGE), _leaky_relu, lambda node: None),
    (keras.ops.gelu(_IMAGE), _gelu, _gelu_problem),
):
    register_kind(Kind((operation_of(_symbol),), None, _problem, parts=_parts))
register_kind(Kind((operation_of(_IMAGE[:, 1:]),), _quantize_slice, _slice_problem))
