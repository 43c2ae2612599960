"""Permute: the axes of each sample in another order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from tfdq.description import Computation, Shape
from tfdq.keras3.graph import Node
from tfdq.keras3.layer_kinds.base import register
from tfdq.keras3.layer_kinds.registry import Kind, Request, operation_of, register_kind
from tfdq.keras3.layer_kinds.shape import MovingLayer
from tflite_export.ir.graph import NoOptions
from tflite_export.lowering import lower


@dataclass(frozen=True)
class Turned(Computation):
    """The axes in another order.

    Attributes:
        order: for each axis of the result that of the source; the batch, 0, is first.
    """

    order: tuple[int, ...]


@lower.lowering(Turned)
def lower_turned(call: lower.Call) -> int:
    """Return the tensor of the result."""
    assembler, label = call.assembler, call.label
    order = np.array(call.computation.order, np.int32)
    constant = assembler.constant(f"{label}/order", order, None, "int32")
    output = assembler.value(label, call.shape, assembler.grid(call.source))
    return assembler.emit("TRANSPOSE", (call.source, constant), output, NoOptions(), label)


@register
class QuantizedPermute(MovingLayer):
    """The same integers with the axes in another order.

    Args:
        order: for each axis of the result that of the source; the batch, 0, is first.
    """

    def __init__(self, order: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.order = tuple(int(axis) for axis in order)

    def move(self, q: Any) -> Any:
        """Return the turned integers."""
        return ops.transpose(q, self.order)

    def result_shape(self, shapes: Any) -> Shape:
        """Return the shape of the result."""
        return tuple(shapes[axis] for axis in self.order)

    def computation(self) -> Computation:
        """Return what the layer computes."""
        return Turned(self.order)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {**super().get_config(), "order": self.order}


def _order(node: Node) -> tuple[int, ...]:
    layer, rank = node.layer, len(node.shape)
    if isinstance(layer, keras.layers.Permute):
        return (0, *layer.dims)
    axes = range(rank)[::-1] if layer.axes is None else layer.axes
    return tuple(axis % rank for axis in axes)


def _quantize(request: Request) -> QuantizedPermute:
    return QuantizedPermute(_order(request.step.node), **request.common)


def _problem(node: Node) -> str | None:
    if _order(node)[0] != 0:
        return f"an order of axes, {_order(node)}, that moves the batch"
    return None


_OPERATION = operation_of(keras.ops.transpose(keras.KerasTensor((None, 2, 3)), (0, 2, 1)))
register_kind(Kind((keras.layers.Permute, _OPERATION), _quantize, _problem))
