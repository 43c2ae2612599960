"""Read a tf_keras model as a plain list of layer calls, nested models flattened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf
import tf_keras

from tfdq.which_keras import is_keras3_model


@dataclass(frozen=True)
class Node:
    """One call of one layer.

    Attributes:
        index: position in the topological order.
        layer: the layer called.
        inputs: positions of the nodes whose outputs it takes, in order.
        shape: shape of its output, the batch axis None.
        call: Keras' own record of the call, with its other arguments; None for an input.
        training: the mode that the call is held in: the ``training`` argument of the call, else
            of the innermost call of a nested model around it that was given one; None: the mode
            that the whole model is called in.
        frozen_by: name of the outermost model around the layer that is not trainable, or None.
    """

    index: int
    layer: tf_keras.layers.Layer
    inputs: tuple[int, ...]
    shape: tuple[int | None, ...]
    call: Any = field(default=None, repr=False, compare=False)
    training: Any = field(default=None, compare=False)
    frozen_by: str | None = field(default=None, compare=False)

    def infer(self, inputs: Sequence[tf.Tensor]) -> tf.Tensor:
        """Return what the call gives in inference mode, with all arguments that the model has.

        A TensorFlow operation on Keras tensors (``logits * 50.0``) is a layer whose numbers are
        arguments of the call.

        Args:
            inputs: a tensor for each of ``self.inputs``.
        """
        args, kwargs = self.arguments(inputs)
        if self.layer._expects_training_arg and self.training is None:
            kwargs["training"] = False
        return self.layer(*args, **kwargs)

    def arguments(self, inputs: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return all arguments of the call, and the mode it is held in, with other tensors.

        Args:
            inputs: a tensor for each of ``self.inputs``.

        Returns:
            The positional arguments and those by name.
        """
        given: dict[str, list[Any]] = {}
        for name, value in zip(self.call.flat_input_ids, inputs, strict=True):
            given.setdefault(name, []).append(value)
        args, kwargs = self.call.map_arguments(given)
        held_from_outside = self.training is not None and _training_of(self.call) is None
        if held_from_outside and self.layer._expects_training_arg:
            kwargs = {**kwargs, "training": self.training}
        return tuple(args), dict(kwargs)

    def structured(self, inputs: Sequence[Any]) -> Any:
        """Return tensors as the call takes its inputs: one by itself, or a list of them.

        Args:
            inputs: a tensor for each of ``self.inputs``.
        """
        if isinstance(self.first_argument(), (list, tuple)):
            return list(inputs)
        (tensor,) = inputs
        return tensor

    def first_argument(self) -> Any:
        """Return the call's first argument, in which a layer takes its inputs."""
        if self.call.call_args:
            return self.call.call_args[0]
        return self.call.call_kwargs.get(self.layer._call_spec.arg_names[0])

    def other_arguments(self) -> dict[str, Any]:
        """Return by name what the call was given besides its inputs and the mode."""
        names = list(self.layer._call_spec.arg_names) or ["inputs"]
        args, kwargs = self.call.call_args, self.call.call_kwargs
        names += [f"argument {position + 1}" for position in range(len(names), len(args))]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        return {
            name: value
            for name, value in given.items()
            if name not in (names[0], "training") and value is not None
        }


@dataclass(frozen=True)
class Graph:
    """A model as calls in topological order, with the positions of its inputs and outputs."""

    nodes: tuple[Node, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def consumers(self) -> list[list[int]]:
        """Return, for each node, the positions of the nodes that take its output."""
        consumers: list[list[int]] = [[] for _ in self.nodes]
        for node in self.nodes:
            for source in node.inputs:
                consumers[source].append(node.index)
        return consumers


def read_graph(model: tf_keras.Model) -> Graph:
    """Return the graph of a built Functional or Sequential model, nested models flattened.

    Raises:
        ValueError: the model is not a built graph of layers, or a layer has several outputs.
    """
    nodes: list[Node] = []
    inputs = []
    for layer in _input_layers(model):
        inputs.append(_append(nodes, layer, (), layer.output_shape))
    outputs = _replay(model, inputs, nodes, _Place(None, None))
    return Graph(tuple(nodes), tuple(inputs), tuple(outputs))


def walk(model: tf_keras.Model) -> list[Node]:
    """Return the calls of ``read_graph(model)``."""
    return list(read_graph(model).nodes)


def _input_layers(model: tf_keras.Model) -> list[tf_keras.layers.InputLayer]:
    if is_keras3_model(model):
        raise ValueError(
            f"{model.name!r} is a Keras 3 model, and only tf_keras models are taken here: convert "
            "the float model with tfdq.from_keras3(model), and quantize that"
        )
    if not getattr(model, "_is_graph_network", False):
        raise ValueError(
            f"{model.name!r} ({type(model).__name__}) is not a built Functional or Sequential "
            "model: give its input shape (model.build(...) or an Input layer), and express a "
            "subclassed model as a Functional one"
        )
    return [tensor.node.layer for tensor in model.inputs]


def _append(
    nodes: list[Node],
    layer: Any,
    inputs: tuple[int, ...],
    shape: Any,
    call: Any = None,
    place: _Place | None = None,
) -> int:
    if isinstance(shape, list):
        if len(shape) != 1:
            raise ValueError(
                f"layer {layer.name!r} ({type(layer).__name__}) has {len(shape)} outputs; "
                "only layers with one output are supported"
            )
        shape = shape[0]
    held = place or _Place(None, None)
    nodes.append(Node(len(nodes), layer, inputs, tuple(shape), call, held.training, held.frozen_by))
    return nodes[-1].index


@dataclass(frozen=True)
class _Place:
    """What the models around a call say of it: see ``Node.training`` and ``Node.frozen_by``."""

    training: Any
    frozen_by: str | None


def _replay(
    model: tf_keras.Model, sources: list[int], nodes: list[Node], place: _Place
) -> list[int]:
    """Append the calls of ``model`` on the given nodes; return the positions of its outputs."""
    _input_layers(model)
    frozen_by = place.frozen_by or (None if model._trainable else model.name)
    position = {id(tensor): source for tensor, source in zip(model.inputs, sources, strict=True)}
    by_depth = model._nodes_by_depth
    for depth in sorted(by_depth, reverse=True):
        for call in by_depth[depth]:
            if call.is_input:
                continue
            taken = [position[id(tensor)] for tensor in call.keras_inputs]
            made = tf.nest.flatten(call.outputs)
            layer = call.layer
            own = _training_of(call)
            here = _Place(place.training if own is None else own, frozen_by)
            if isinstance(layer, tf_keras.Model):
                results = _replay(layer, taken, nodes, here)
            else:
                shapes = [t.shape for t in made]
                results = [_append(nodes, layer, tuple(taken), shapes, call, here)]
            position.update((id(tensor), at) for tensor, at in zip(made, results, strict=True))
    return [position[id(tensor)] for tensor in model.outputs]


def _training_of(call: Any) -> Any:
    """Return the ``training`` argument that Keras recorded of a call; None: it had none."""
    spec = call.layer._call_spec
    args, kwargs = call.call_args, call.call_kwargs
    if not spec.arg_was_passed("training", args, kwargs, inputs_in_args=True):
        return None
    value = spec.get_arg_value("training", args, kwargs, inputs_in_args=True)
    return bool(value) if isinstance(value, (bool, int)) else value
