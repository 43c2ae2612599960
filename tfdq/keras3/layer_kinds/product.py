"""Multiply: the product of two tensors, of which one may repeat over the image of the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from tfdq.description import Call, Computation, Shape, repeated_shape
from tfdq.grid import Grid
from tfdq.keras3.graph import Node
from tfdq.keras3.layer_kinds.base import Flow, Phase, QuantizedLayer, Sealing, register
from tfdq.keras3.layer_kinds.registry import OPERATIONS, Kind, Request, ranks_problem, register_kind
from tfdq.keras3.layer_kinds.scaling import by_number, by_number_problem
from tfdq.keras3.learned_steps import range_of
from tfdq.keras3.ranges import RangeSettings
from tfdq.keras3.rounding import between, round_through, with_gradient_of
from tflite_export.ir.requantization import requantization_scale
from tflite_export.lowering import lower


@dataclass(frozen=True)
class Product(Computation):
    """The product of two sources of one rank; axes of size 1 repeat along the other's."""


@lower.lowering(Product)
def lower_product(call: lower.Call) -> int:
    """Return the tensor of the product."""
    left, right = call.sources
    return call.assembler.multiply(left, right, call.target, call.label)


@register
class QuantizedMultiply(QuantizedLayer):
    """The product of two tensors, with a ReLU or ReLU6 if it took one in.

    Args:
        output: `RangeSettings` of the product.
        activation: ``"linear"``, ``"relu"`` or ``"relu6"``.
    """

    merges = True
    sealed_sources = 2

    def __init__(
        self, output: RangeSettings | dict[str, Any], activation: str = "linear", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.output_settings = RangeSettings.of(output)
        self.activation = activation

    def build(self, input_shape: Any) -> None:
        """Create the range and the deployed factor."""
        self.range = range_of(self, self.output_settings)
        self.factor = self.add_constant("factor", ())
        self.build_seal()

    def result_shape(self, shapes: Any) -> Shape:
        """Return the shape that both sources repeat to."""
        return repeated_shape(*shapes)

    def train(self, flow: Any, phase: Phase) -> Flow:
        """Return the product in training."""
        (left, left_step), (right, right_step) = flow
        values = (left * left_step) * (right * right_step)
        if self.activation != "linear":
            values = ops.relu(values) if self.activation == "relu" else ops.relu6(values)
        steps = self.range.take(values, phase.ranges)
        low = steps.low if self.activation == "linear" else ops.maximum(steps.low, 0.0)
        scaled = between(values * (1.0 / steps.step), low, steps.high)
        return round_through(scaled), steps.step

    def infer(self, flow: Any) -> Flow:
        """Return the product that the deployed operator gives."""
        (left, left_step), (right, right_step) = flow
        values = (left * right) * self.factor
        bounds = ops.convert_to_tensor(self.sealed_bounds)
        exact = between(ops.round(ops.stop_gradient(values)), bounds[0], bounds[1])
        q = with_gradient_of(exact, between(values, bounds[0], bounds[1]))
        return q, self.deployed_step(left_step, right_step)

    def computation(self) -> Computation:
        """Return what the layer computes."""
        return Product()

    def grid(self) -> Grid:
        """Return the grid of the product."""
        return self.range.grid()

    def describe(self, sources: tuple[int, ...], shape: Shape) -> Call:
        """Return the layer's entry in the description of a model."""
        bits = (None, self.output_settings.bits)
        return Call(
            self.name, self.computation(), sources, shape, self.grid(), self.activation, bits
        )

    def seal(self, sealing: Sealing) -> None:
        """Take the factor from the operator that the layer became."""
        operator = next(op for op in sealing.operators if op.kind == "MUL")
        left, right = (sealing.scale(index) for index in operator.inputs)
        output = sealing.scale(operator.outputs[0])
        self.factor.assign(requantization_scale(left, np.array([right]), output)[0])
        self.set_seal(sealing)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        config = {"output": self.output_settings.config(), "activation": self.activation}
        return {**super().get_config(), **config}


def _quantize(request: Request) -> QuantizedMultiply:
    return QuantizedMultiply(output=request.output, activation=request.activation, **request.common)


def _problem(node: Node) -> str | None:
    if len(node.inputs) == 1:
        return by_number_problem(node)
    if len(node.inputs) > 2:
        return f"a product of {len(node.inputs)} tensors; multiply two at a time"
    return ranks_problem(node)


register_kind(
    Kind(
        (keras.layers.Multiply, *OPERATIONS["multiply"]),
        _quantize,
        _problem,
        takes_in=("activation",),
        merges=True,
        parts=by_number,
    )
)
