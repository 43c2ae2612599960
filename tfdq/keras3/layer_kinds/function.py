"""SiLU (swish), hard SiLU (hard swish), GELU, ELU: functions of each value, a table at inference.

The deployed form of SiLU and hard SiLU is two operators, a gate and the product with it; GELU and
ELU are operators. The model looks up what these make of each of the 256 integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from keras import ops

from tfdq.description import Call, Computation, Shape
from tfdq.grid import INT8_MIN, Grid
from tfdq.keras3.layer_kinds.base import Flow, Phase, QuantizedLayer, Sealing, register
from tfdq.keras3.layer_kinds.registry import register_activation
from tfdq.keras3.ranges import OutputRange, RangeSettings
from tfdq.keras3.rounding import between, round_through, with_gradient_of
from tfdq.settings.quantization import LINEAR_BITS
from tflite_export.ir.graph import INTEGER_RANGES, NoOptions, Options
from tflite_export.lowering import lower
from tflite_export.ops import OPERATORS, logistic
from tflite_export.ops.gelu import Gelu

_VALUES = 256
_GATE_STEPS = {"silu": 256.0, "hard_silu": 255.0}


_OPERATORS: dict[str, Options] = {"gelu": Gelu(approximate=False), "elu": NoOptions()}
"""The functions that are one operator, each with its options."""


@dataclass(frozen=True)
class Gated(Computation):
    """Each value times a gate that it opens itself, or an ELU.

    Attributes:
        function: ``"silu"``, whose gate is a sigmoid, ``"hard_silu"``, ``relu6(x + 3) / 6``,
            ``"gelu"``, the normal distribution, or ``"elu"``, which has none.
    """

    function: str


@lower.lowering(Gated)
def lower_gated(call: lower.Call) -> int:
    """Return the tensor of the product."""
    assembler, source, label = call.assembler, call.source, call.label
    function = call.computation.function
    if function in _OPERATORS:
        output = assembler.value(label, call.shape, call.target)
        return assembler.emit(function.upper(), (source,), output, _OPERATORS[function], label)
    if function == "silu":
        gate = assembler.value(f"{label}/gate", call.shape, Grid(*logistic.GRID))
        assembler.emit("LOGISTIC", (source,), gate, NoOptions(), label)
    else:
        gate = assembler.rescale(source, Grid(1 / 255, INT8_MIN), label, 1 / 6, 0.5)
    return assembler.multiply(source, gate, call.target, label)


@register
class QuantizedGated(QuantizedLayer):
    """SiLU, hard SiLU, GELU or ELU, on a grid of its own.

    Args:
        function: ``"silu"``, ``"hard_silu"``, ``"gelu"`` or ``"elu"``.
        output: `RangeSettings` of the result.
    """

    sealed_sources = 1

    def __init__(
        self, function: str, output: RangeSettings | dict[str, Any], **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.function = function
        self.output_settings = RangeSettings.of(output)

    def build(self, input_shape: Any) -> None:
        """Create the range, the table, and the integer that its first entry is for."""
        self.range = OutputRange(self, self.output_settings)
        self.table = self.add_constant("table", (_VALUES,))
        self.first = self.add_constant("first", ())
        self.build_seal()

    def result_shape(self, shapes: Any) -> Shape:
        """Return the shape of the source."""
        return tuple(shapes)

    def train(self, flow: Any, phase: Phase) -> Flow:
        """Return the product in training, the gate rounded as it is deployed."""
        q, step = flow
        values = q * step
        if self.function in _OPERATORS:
            values = self._smooth(values)
        else:
            levels = _GATE_STEPS[self.function]
            gate = ops.sigmoid(values) if self.function == "silu" else ops.hard_sigmoid(values)
            values = values * (round_through(between(gate * levels, 0.0, 255.0)) * (1.0 / levels))
        seen = ops.stop_gradient(values)
        steps = self.range.observe(ops.min(seen), ops.max(seen), phase.ranges)
        return round_through(
            between(values * (1.0 / steps.step), steps.low, steps.high)
        ), steps.step

    def _smooth(self, values: Any) -> Any:
        """Return the function of real values."""
        if self.function == "gelu":
            return ops.gelu(values, approximate=False)
        return getattr(ops, self.function)(values)

    def infer(self, flow: Any) -> Flow:
        """Return the product that the deployed operators give."""
        q, step = flow
        places = ops.cast(ops.stop_gradient(q) - ops.convert_to_tensor(self.first), "int32")
        exact = ops.take(ops.convert_to_tensor(self.table), ops.clip(places, 0, _VALUES - 1))
        result = self.deployed_step(step)
        bounds = ops.convert_to_tensor(self.sealed_bounds)
        values = q * step
        smooth = self._smooth(values) * (1.0 / ops.maximum(self.sealed_result, 1e-30))
        smooth = between(smooth, bounds[0], bounds[1])
        return with_gradient_of(exact, smooth), result

    def computation(self) -> Computation:
        """Return what the layer computes."""
        return Gated(self.function)

    def grid(self) -> Grid:
        """Return the grid of the result."""
        return self.range.grid()

    def describe(self, sources: tuple[int, ...], shape: Shape) -> Call:
        """Return the layer's entry in the description of a model."""
        bits = (None, self.output_settings.bits)
        return Call(self.name, self.computation(), sources, shape, self.grid(), bits=bits)

    def seal(self, sealing: Sealing) -> None:
        """Tabulate what the deployed operators make of each integer."""
        source, output = (sealing.graph.tensors[i] for i in (sealing.sources[0], sealing.result))
        table = table_of(sealing)[:, 0].astype(np.float32)
        self.table.assign(table - np.float32(output.zero_point))
        self.first.assign(np.float32(INTEGER_RANGES["int8"][0] - source.zero_point))
        self.set_seal(sealing)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        config = {"function": self.function, "output": self.output_settings.config()}
        return {**super().get_config(), **config}


def table_of(sealing: Sealing) -> np.ndarray:
    """Return what the operators of a call make of each int8 integer, from the lowest on.

    They map each integer by itself.

    Returns:
        int8 ``(256, channels)``.
    """
    graph, source = sealing.graph, sealing.sources[0]
    low, high = INTEGER_RANGES["int8"]
    channels = graph.tensors[source].shape[-1]
    integers = np.arange(low, high + 1).reshape(-1, 1, 1, 1)
    values = {source: np.broadcast_to(integers, (_VALUES, 1, 1, channels))}
    for operator in sealing.operators:
        if operator.kind == "RESHAPE":
            values[operator.outputs[0]] = values[operator.inputs[0]]
            continue
        tensors = [graph.tensors[i] for i in operator.inputs]
        specification = OPERATORS[operator.kind]
        step = specification.step(operator, tensors, graph.tensors[operator.outputs[0]], "xnnpack")
        operands = [
            values[i] if tensor.data is None else tensor.data
            for i, tensor in zip(operator.inputs, tensors, strict=True)
        ]
        values[operator.outputs[0]] = specification.reference(step, operands)
    return values[sealing.result][:, 0, 0]


for _name in (*_GATE_STEPS, *_OPERATORS):
    register_activation(_name, partial(QuantizedGated, _name, RangeSettings(LINEAR_BITS)))
