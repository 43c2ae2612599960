"""Compute the deployed constants of a quantized model and hand them to its layers.

The constants are those of the integer network that the export writes: the model describes itself in
float64 NumPy, the description is lowered to integer operators, and each layer takes its constants
from the operators that it became. So the model computes at inference what the file does, on every
backend.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tfdq.description import Description, Input, ZeroPad2D
from tfdq.keras3.graph import Graph, Node, read_graph
from tfdq.keras3.layer_kinds import InputQuantizer, QuantizedLayer
from tfdq.keras3.layer_kinds.base import Sealing
from tflite_export.ir.graph import Operator
from tflite_export.lowering.lower import Lowered, clamped_grid, lower

Bounds = tuple[int, int]


@dataclass(frozen=True)
class Ordered:
    """The layers of a quantized model in the order of its description's values.

    Layers in float (``skip``) cut a model into pieces: what they take is an output of the
    description, what they give is an input.

    Attributes:
        inputs: the calls of the input quantizers, in the order of the model's inputs; then those
            behind layers in float.
        calls: the other calls.
        values: for each quantized node of the graph the number of its value.
        outputs: values of the model's outputs; then those that layers in float take.
        names: names of the inputs.
        in_float: names of the layers in float.
    """

    inputs: tuple[Node, ...]
    calls: tuple[Node, ...]
    values: dict[int, int]
    outputs: tuple[int, ...]
    names: tuple[str, ...]
    in_float: tuple[str, ...]

    @property
    def layers(self) -> list[QuantizedLayer]:
        """The layers by value."""
        return [node.layer for node in (*self.inputs, *self.calls)]


def ordered(model: Any) -> Ordered:
    """Return the layers of a quantized model."""
    graph: Graph = read_graph(model)
    behind: dict[int, Node] = {}
    inner, calls, floats = [], [], []
    for node in graph.nodes:
        if not node.inputs:
            continue
        if not isinstance(node.layer, QuantizedLayer):
            floats.append(node)
        elif not isinstance(node.layer, InputQuantizer):
            calls.append(node)
        elif node.inputs[0] in graph.inputs:
            behind[node.inputs[0]] = node
        else:
            inner.append(node)
    inputs = (*(behind[index] for index in graph.inputs), *inner)
    values = {node.index: value for value, node in enumerate((*inputs, *calls))}
    taken = (*graph.outputs, *(index for node in floats for index in node.inputs))
    names = [graph.nodes[index].layer.name for index in graph.inputs]
    return Ordered(
        inputs,
        tuple(calls),
        values,
        tuple(dict.fromkeys(values[index] for index in taken if index in values)),
        (*names, *(node.layer.name for node in inner)),
        tuple(dict.fromkeys(node.layer.name for node in floats)),
    )


def describe(model: Any) -> Description:
    """Return the description of a quantized model as its variables are now.

    Raises:
        ValueError: a range has seen no data.
    """
    order = ordered(model)
    inputs = tuple(
        Input(name, name, node.shape, node.layer.grid())
        for name, node in zip(order.names, order.inputs, strict=True)
    )
    calls = tuple(
        node.layer.describe(tuple(order.values[i] for i in node.inputs), node.shape)
        for node in order.calls
    )
    return Description(model.name, inputs, calls, order.outputs)


def seal(model: Any) -> Lowered:
    """Give the layers of a model the constants of the network that would be exported now.

    Returns:
        That network.

    Raises:
        ValueError: a range has seen no data.
    """
    order, lowered = ordered(model), lower(describe(model))
    description = lowered.description
    bounds = _bounds(order, lowered)
    operators: dict[str, list[Operator]] = {}
    for operator in lowered.graph.operators:
        operators.setdefault(operator.label, []).append(operator)
    for node, entry in zip(order.inputs, description.inputs, strict=True):
        node.layer.seal_input(entry.grid)
    for value, (node, call) in enumerate(
        zip(order.calls, description.calls, strict=True), len(order.inputs)
    ):
        node.layer.seal(
            Sealing(
                lowered.graph,
                operators.get(call.label, []),
                tuple(lowered.tensors[source] for source in call.sources),
                lowered.tensors[value],
                tuple(bounds[source] for source in call.sources),
                bounds[value],
            )
        )
    return lowered


def steps_of(lowered: Lowered) -> list[np.float32]:
    """Return the step of each value of a network."""
    return [np.float32(lowered.graph.tensors[index].scale) for index in lowered.tensors]


def _bounds(order: Ordered, lowered: Lowered) -> list[Bounds]:
    """Return the lowest and the highest integer of each value, counted from its zero point."""
    description = lowered.description
    found: list[Bounds] = []
    for entry in description.inputs:
        zero = entry.grid.zero_point
        found.append((entry.grid.qmin - zero, entry.grid.qmax - zero))
    for node, call in zip(order.calls, description.calls, strict=True):
        ends = [found[source] for source in call.sources]
        low, high = min(low for low, _ in ends), max(high for _, high in ends)
        if call.grid is not None:
            target = clamped_grid(call.grid, call.activation)
            low, high = target.qmin - target.zero_point, target.qmax - target.zero_point
        elif node.layer.own_grid:
            # The runtime prescribes it, as of a sigmoid: any integer may come.
            result = lowered.graph.tensors[lowered.tensors[len(found)]]
            low, high = -128 - result.zero_point, 127 - result.zero_point
        elif isinstance(call.computation, ZeroPad2D):
            low, high = min(low, 0), max(high, 0)
        found.append((low, high))
    return found
