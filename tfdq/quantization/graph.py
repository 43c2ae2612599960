"""Read a tf_keras model as a plain list of layer calls, nested models flattened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf
import tf_keras


@dataclass(frozen=True)
class Node:
    """One call of one layer.

    Attributes:
        index: position in the topological order.
        layer: the layer called.
        inputs: positions of the nodes whose outputs it takes, in order.
        shape: shape of its output, the batch axis None.
        call: Keras' own record of the call, with its other arguments; None for an input.
    """

    index: int
    layer: tf_keras.layers.Layer
    inputs: tuple[int, ...]
    shape: tuple[int | None, ...]
    call: Any = field(default=None, repr=False, compare=False)

    def infer(self, inputs: Sequence[tf.Tensor]) -> tf.Tensor:
        """Return what the call gives in inference mode, with all arguments that the model has.

        A TensorFlow operation on Keras tensors (``logits * 50.0``) is a layer whose numbers are
        arguments of the call.

        Args:
            inputs: a tensor for each of ``self.inputs``.
        """
        given: dict[str, list[tf.Tensor]] = {}
        for name, value in zip(self.call.flat_input_ids, inputs, strict=True):
            given.setdefault(name, []).append(value)
        args, kwargs = self.call.map_arguments(given)
        takes_training = self.layer._expects_training_arg
        if takes_training and not self.layer._call_spec.arg_was_passed("training", args, kwargs):
            kwargs["training"] = False
        return self.layer(*args, **kwargs)


@dataclass(frozen=True)
class Graph:
    """A model as calls in topological order, with the positions of its inputs and outputs."""

    nodes: tuple[Node, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def consumers(self) -> list[list[int]]:
        """Return, for each node, the positions of the nodes that take its output."""
        takers: list[list[int]] = [[] for _ in self.nodes]
        for node in self.nodes:
            for source in node.inputs:
                takers[source].append(node.index)
        return takers


def read_graph(model: tf_keras.Model) -> Graph:
    """Return the graph of a built Functional or Sequential model, nested models flattened.

    Raises:
        ValueError: the model is not a built graph of layers, or a layer has several outputs.
    """
    nodes: list[Node] = []
    inputs = []
    for layer in _input_layers(model):
        inputs.append(_append(nodes, layer, (), layer.output_shape))
    outputs = _replay(model, inputs, nodes)
    return Graph(tuple(nodes), tuple(inputs), tuple(outputs))


def walk(model: tf_keras.Model) -> list[Node]:
    """Return the calls of ``read_graph(model)``."""
    return list(read_graph(model).nodes)


def _input_layers(model: tf_keras.Model) -> list[tf_keras.layers.InputLayer]:
    if not getattr(model, "_is_graph_network", False):
        raise ValueError(
            f"{model.name!r} ({type(model).__name__}) is not a built Functional or Sequential "
            "model: give its input shape (model.build(...) or an Input layer), and express a "
            "subclassed model as a Functional one"
        )
    return [tensor.node.layer for tensor in model.inputs]


def _append(
    nodes: list[Node], layer: Any, inputs: tuple[int, ...], shape: Any, call: Any = None
) -> int:
    if isinstance(shape, list):
        if len(shape) != 1:
            raise ValueError(
                f"layer {layer.name!r} ({type(layer).__name__}) has {len(shape)} outputs; "
                "only layers with one output are supported"
            )
        shape = shape[0]
    nodes.append(Node(len(nodes), layer, inputs, tuple(shape), call))
    return nodes[-1].index


def _replay(model: tf_keras.Model, sources: list[int], nodes: list[Node]) -> list[int]:
    """Append the calls of ``model`` on the given nodes; return the positions of its outputs."""
    _input_layers(model)
    position = {id(tensor): source for tensor, source in zip(model.inputs, sources, strict=True)}
    by_depth = model._nodes_by_depth
    for depth in sorted(by_depth, reverse=True):
        for call in by_depth[depth]:
            if call.is_input:
                continue
            taken = [position[id(tensor)] for tensor in call.keras_inputs]
            made = _flat(call.outputs)
            layer = call.layer
            if isinstance(layer, tf_keras.Model):
                results = _replay(layer, taken, nodes)
            else:
                results = [_append(nodes, layer, tuple(taken), [t.shape for t in made], call)]
            position.update((id(tensor), at) for tensor, at in zip(made, results, strict=True))
    return [position[id(tensor)] for tensor in model.outputs]


def _flat(tensors: Any) -> list[Any]:
    return list(tensors) if isinstance(tensors, (list, tuple)) else [tensors]
