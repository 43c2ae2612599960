"""Sigmoid and tanh: from a table, on a grid that the integer runtime fixes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from keras import ops

from tfdq.description import Computation, Shape
from tfdq.grid import Grid
from tfdq.keras3.layer_kinds.base import Flow, Phase, QuantizedLayer, Sealing, register
from tfdq.keras3.layer_kinds.registry import register_activation
from tfdq.keras3.rounding import between, round_through, with_gradient_of
from tflite_export.ir.graph import INTEGER_RANGES, NoOptions
from tflite_export.lowering.lower import Call, lowering
from tflite_export.ops import OPERATORS, logistic, tanh

_VALUES = 256


@dataclass(frozen=True)
class Curve(Computation):
    """A function of each value by itself.

    Attributes:
        operator: that computes it, ``"LOGISTIC"`` or ``"TANH"``.
        grid: scale and zero point of its int8 result.
    """

    operator: str
    grid: tuple[float, int]


CURVES = {"sigmoid": Curve("LOGISTIC", logistic.GRID), "tanh": Curve("TANH", tanh.GRID)}
"""The functions, by their names in Keras."""


@lowering(Curve)
def lower_curve(call: Call) -> int:
    """Return the tensor of the result."""
    operator, grid = call.computation.operator, call.computation.grid
    output = call.assembler.value(call.label, call.shape, Grid(*grid))
    return call.assembler.emit(operator, (call.source,), output, NoOptions(), call.label)


@register
class QuantizedCurve(QuantizedLayer):
    """Sigmoid in multiples of 1/256, or tanh in multiples of 1/128.

    Args:
        function: ``"sigmoid"`` or ``"tanh"``.
    """

    sealed_sources = 1
    own_grid = True
    rising = True

    def __init__(self, function: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.function = function
        self.curve = CURVES[function]
        low, high = INTEGER_RANGES["int8"]
        scale, zero_point = self.curve.grid
        self.step = float(scale)
        self.ends = (float(low - zero_point), float(high - zero_point))

    def build(self, input_shape: Any) -> None:
        """Create the table, and the integer that its first entry is for."""
        self.table = self.add_constant("table", (_VALUES,))
        self.first = self.add_constant("first", ())
        self.build_seal()

    def result_shape(self, shapes: Any) -> Shape:
        """Return the shape of the source."""
        return tuple(shapes)

    def _smooth(self, flow: Flow) -> Any:
        """Return the function in steps, before they are rounded."""
        q, step = flow
        values = ops.sigmoid(q * step) if self.function == "sigmoid" else ops.tanh(q * step)
        return between(values * (1.0 / self.step), *self.ends)

    def train(self, flow: Any, phase: Phase) -> Flow:
        """Return the result in training."""
        return round_through(self._smooth(flow)), ops.full((), self.step)

    def infer(self, flow: Any) -> Flow:
        """Return the result that the deployed operator gives."""
        q, step = flow
        places = ops.cast(ops.stop_gradient(q) - ops.convert_to_tensor(self.first), "int32")
        places = ops.clip(places, 0, _VALUES - 1)
        exact = ops.take(ops.convert_to_tensor(self.table), places)
        return with_gradient_of(exact, self._smooth(flow)), self.deployed_step(step)

    def computation(self) -> Computation:
        """Return what the layer computes."""
        return self.curve

    def seal(self, sealing: Sealing) -> None:
        """Tabulate what the deployed operator makes of each integer."""
        (operator,) = sealing.operators
        source, output = (sealing.graph.tensors[i] for i in (sealing.sources[0], sealing.result))
        low, high = INTEGER_RANGES["int8"]
        specification = OPERATORS[operator.kind]
        step = specification.step(operator, [source], output, "xnnpack")
        found = specification.reference(step, [np.arange(low, high + 1)])
        self.table.assign(found.astype(np.float32) - np.float32(output.zero_point))
        self.first.assign(np.float32(low - source.zero_point))
        self.set_seal(sealing)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {**super().get_config(), "function": self.function}


for _name in CURVES:
    register_activation(_name, partial(QuantizedCurve, _name))
