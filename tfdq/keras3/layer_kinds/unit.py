"""UnitNormalization: each vector of the last axis over its length, as L2_NORMALIZATION has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from tfdq.description import Computation, Shape
from tfdq.grid import Grid
from tfdq.keras3.dropped_epsilon import DroppedEpsilon, dropped
from tfdq.keras3.graph import Node
from tfdq.keras3.layer_kinds.base import Flow, Phase, QuantizedLayer, Sealing, register
from tfdq.keras3.layer_kinds.registry import Kind, Request, operation_of, register_kind
from tfdq.keras3.rounding import between, round_through, with_gradient_of
from tflite_export.ir.graph import INTEGER_RANGES
from tflite_export.lowering import lower
from tflite_export.ops.l2_normalization import GRID, MOST_ENTRIES, UNITS, L2Normalization
from tflite_export.ops.twin_roots import smooth_units, whole_units

_LARGEST_EPSILON = 1e-6
"""Keras' own is 1e-12."""
_ENDS = tuple(float(end) for end in INTEGER_RANGES["int8"])


@dataclass(frozen=True)
class UnitVector(Computation):
    """Each vector of the last axis over its length; a vector of zeros stays one."""


@lower.lowering(UnitVector)
def lower_unit(call: lower.Call) -> int:
    """Return the tensor of the result."""
    output = call.assembler.value(call.label, call.shape, Grid(*GRID))
    return call.assembler.emit(
        "L2_NORMALIZATION", (call.source,), output, L2Normalization(), call.label
    )


@register
class UnitOfNorm(keras.layers.UnitNormalization):
    """The unit vectors of a layer that normalizes with an epsilon, which is dropped.

    Args:
        norm: name of that layer.
        dropped_epsilon: its epsilon, above 0.
    """

    def __init__(self, norm: str, dropped_epsilon: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.norm = norm
        self.dropped_epsilon = float(dropped_epsilon)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        own = {"norm": self.norm, "dropped_epsilon": self.dropped_epsilon}
        return {**super().get_config(), **own}


@register
class QuantizedUnit(QuantizedLayer):
    """Vectors of length 1, in multiples of 1/128.

    Args:
        norm: name of the float layer whose epsilon is dropped; None: none is.
        dropped_epsilon: that epsilon.
    """

    sealed_sources = 1
    own_grid = True

    def __init__(
        self, norm: str | None = None, dropped_epsilon: float = 0.0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.norm = norm
        self.dropped_epsilon = float(dropped_epsilon)

    def build(self, input_shape: Any) -> None:
        """Create what says which network the layer belongs to."""
        self.build_seal()

    def result_shape(self, shapes: Any) -> Shape:
        """Return the shape of the source."""
        return tuple(shapes)

    def _smooth(self, q: Any) -> Any:
        """Return the result in steps, before they are rounded."""
        return between(smooth_units(q), *_ENDS)

    def train(self, flow: Any, phase: Phase) -> Flow:
        """Return the result in training."""
        seen = dropped.get()
        if seen is not None and self.norm is not None:
            q, step = (ops.convert_to_numpy(part) for part in flow)
            entry = seen.setdefault(self.name, DroppedEpsilon(self.norm, self.dropped_epsilon))
            entry.take(np.mean(np.square(q * step), axis=-1))
        return round_through(self._smooth(flow[0])), ops.full((), 1.0 / UNITS)

    def infer(self, flow: Any) -> Flow:
        """Return the result that the deployed operator gives."""
        q, step = flow
        exact = between(whole_units(ops.stop_gradient(q)), *_ENDS)
        return with_gradient_of(exact, self._smooth(q)), self.deployed_step(step)

    def computation(self) -> Computation:
        """Return what the layer computes."""
        return UnitVector()

    def seal(self, sealing: Sealing) -> None:
        """Record the grids."""
        self.set_seal(sealing)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        config = super().get_config()
        if self.norm is None:
            return config
        return {**config, "norm": self.norm, "dropped_epsilon": self.dropped_epsilon}


def _quantize(request: Request) -> QuantizedUnit:
    layer = request.layer
    if isinstance(layer, UnitOfNorm):
        return QuantizedUnit(layer.norm, layer.dropped_epsilon, **request.common)
    return QuantizedUnit(**request.common)


def _problem(node: Node) -> str | None:
    layer, rank = node.layer, len(node.shape)
    axes = layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]
    order = getattr(layer, "order", 2)
    if [axis % rank for axis in axes] != [rank - 1] or order != 2:
        return f"axis={layer.axis} and order {order}; the last axis and order 2 are taken"
    epsilon = getattr(layer, "epsilon", None)
    if epsilon is not None and epsilon > _LARGEST_EPSILON:
        return f"epsilon={epsilon:g}; vectors of integers are divided by their whole length"
    entries = node.shape[-1] or 0
    if entries > MOST_ENTRIES:
        return f"vectors of {entries} entries; at most {MOST_ENTRIES} are taken"
    return f"a tensor of rank {rank}; Reshape it first" if rank > 4 else None


_NORMALIZE = operation_of(keras.ops.normalize(keras.KerasTensor((None, 2))))
register_kind(Kind((keras.layers.UnitNormalization, UnitOfNorm, _NORMALIZE), _quantize, _problem))
