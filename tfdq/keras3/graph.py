"""A Functional or Sequential Keras 3 model as a list of layer calls, nested models flattened."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras

from tfdq.mistakes import WrongTypeError


@dataclass(frozen=True)
class Node:
    """One call of a layer or an operation, or an input.

    Attributes:
        index: its position in the graph.
        layer: the layer (``keras.layers.InputLayer`` for an input), or a ``keras.Operation``.
        inputs: the nodes whose results it takes.
        shape: of its result; the batch is None.
        inference: the call, or that of a model around it, says ``training=False``.
        oddity: what keeps the call from being a plain one, or None.
        arguments: what it was called with, symbolic tensors and constants.
        settings_name: the name that settings know it by, where it is not the layer's.
        call: Keras' own record of the call; None for an input.
    """

    index: int
    layer: Any
    inputs: tuple[int, ...]
    shape: tuple[int | None, ...]
    inference: bool = False
    oddity: str | None = None
    arguments: tuple[Any, ...] = ()
    settings_name: str | None = None
    call: Any = None

    def called_with(self, sources: Mapping[int, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return what the layer is called with, positional and named.

        Args:
            sources: the tensors in place of each of `inputs`, by its index.
        """
        tensors = [tensor for tensor in self.call.input_tensors if tensor.shape]
        given = {id(t): sources[index] for t, index in zip(tensors, self.inputs, strict=True)}
        args, kwargs = keras.tree.map_structure(
            lambda value: given.get(id(value), value),
            (tuple(self.call.arguments.args), dict(self.call.arguments.kwargs)),
        )
        if self.inference:
            kwargs["training"] = False
        return args, {name: value for name, value in kwargs.items() if value is not None}

    def infer(self, sources: Mapping[int, Any]) -> Any:
        """Return what the call gives in inference mode.

        Args:
            sources: the tensors in place of each of `inputs`, by its index.
        """
        args, kwargs = self.called_with(sources)
        if _takes_training(self.layer):
            kwargs["training"] = False
        return self.layer(*args, **kwargs)


@dataclass(frozen=True)
class Graph:
    """The calls of a model, each behind those whose results it takes.

    Attributes:
        nodes: the calls.
        inputs: nodes of the inputs, in the order of ``model.inputs``.
        outputs: nodes of the outputs, in the order of ``model.outputs``.
        input_structure: the model's inputs as it takes them: a tensor, a list or a dictionary.
        output_structure: likewise its outputs.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    input_structure: Any
    output_structure: Any

    def consumers(self) -> list[list[int]]:
        """Return, for each node, the nodes that take its result."""
        found: list[list[int]] = [[] for _ in self.nodes]
        for node in self.nodes:
            for source in node.inputs:
                found[source].append(node.index)
        return found


def functional(model: Any) -> Any:
    """Return the graph that Keras holds of a model.

    Raises:
        TypeError: it is no Keras 3 model.
        ValueError: it is subclassed, or not built.
    """
    if not isinstance(model, keras.Model):
        raise WrongTypeError(
            f"expected a Functional or Sequential model of Keras 3, got {type(model).__name__}"
        )
    if isinstance(model, keras.Sequential):
        if model._functional is None:
            raise ValueError(
                f"model {model.name!r} is not built: give it a keras.Input first, or call "
                "build(input_shape)"
            )
        return model._functional
    if not hasattr(model, "_nodes_by_depth"):
        raise ValueError(
            f"model {model.name!r} is a subclassed model, whose call is Python code: build it from "
            "layers, keras.Model(inputs, outputs)"
        )
    if type(model).call.__module__.partition(".")[0] != "keras":
        raise ValueError(
            f"model {model.name!r} ({type(model).__name__}) has a call method of its own, which "
            "would be lost: build it from layers, keras.Model(inputs, outputs)"
        )
    return model


def calls(function: Any) -> Iterator[Any]:
    """Return Keras' own nodes of a graph, each behind those that its inputs come from."""
    for depth in sorted(function._nodes_by_depth, reverse=True):
        yield from (node for node in function._nodes_by_depth[depth] if not node.is_input)


def read_graph(model: Any) -> Graph:
    """Return a model as a graph.

    Raises:
        TypeError: it is no Keras 3 model.
        ValueError: it, or a model inside it, is subclassed or not built.
    """
    function = functional(model)
    nodes: list[Node] = []
    values: dict[int, int] = {}
    for tensor in function.inputs:
        layer = tensor._keras_history.operation
        values[id(tensor)] = len(nodes)
        nodes.append(Node(len(nodes), layer, (), tuple(tensor.shape)))
    inputs = tuple(range(len(nodes)))
    _walk(model, nodes, values, around=None)
    return Graph(
        tuple(nodes),
        inputs,
        tuple(values[id(tensor)] for tensor in function.outputs),
        function._inputs_struct,
        function._outputs_struct,
    )


def check_input_shape(
    graph: Graph, shape: Sequence[int], declared: tuple[int | None, ...]
) -> tuple[int, ...]:
    """Return the shape of an input as Python's whole numbers.

    Args:
        graph: the model.
        shape: of an input, without the batch.
        declared: what the model takes, None where any size is taken.

    Raises:
        ValueError: the model has several inputs, or does not take the shape.
    """
    if len(graph.inputs) != 1:
        raise ValueError(
            f"input_shape={tuple(shape)} is for models of one input, this one has "
            f"{len(graph.inputs)}; build it with keras.Input of the shape of each"
        )
    try:
        sizes = tuple(operator.index(size) for size in shape)
    except TypeError:
        sizes = ()
    fits = len(sizes) == len(declared) and all(
        size > 0 and known in (None, size) for size, known in zip(sizes, declared, strict=True)
    )
    if not fits:
        raise ValueError(
            f"input_shape={tuple(shape)} is no shape of an input {declared} of this model; give "
            "whole numbers where it has None, and what it has elsewhere"
        )
    return sizes


def at_input_shape(graph: Graph, shape: Sequence[int]) -> Graph:
    """Return a model for inputs of one size; the layers stay as they are.

    Args:
        graph: a model of one input, whose axes may be of unknown size.
        shape: of an input, without the batch.

    Raises:
        ValueError: the model has several inputs, or does not take the shape.
    """
    sizes = check_input_shape(graph, shape, graph.nodes[graph.inputs[0]].shape[1:])
    nodes: list[Node] = []
    for node in graph.nodes:
        if not node.inputs:
            nodes.append(replace(node, shape=(node.shape[0], *sizes)))
            continue
        tensors = {index: keras.KerasTensor(nodes[index].shape) for index in node.inputs}
        args, kwargs = node.called_with(tensors)
        results = keras.tree.flatten(node.layer.compute_output_spec(*args, **kwargs))
        found = next(result for result in results if result.shape)
        nodes.append(replace(node, shape=tuple(found.shape), arguments=args))
    return replace(graph, nodes=tuple(nodes))


def _walk(model: Any, nodes: list[Node], values: dict[int, int], around: bool | None) -> None:
    """Append the calls of a model whose inputs are known.

    Args:
        model: the model.
        nodes: the calls so far.
        values: nodes of the tensors known so far.
        around: what the call of the model around it says of ``training``; None: nothing.
    """
    for call in calls(functional(model)):
        layer = call.operation
        given = {key: value for key, value in call.arguments.kwargs.items() if value is not None}
        training = _training_of(layer, given.pop("training", None))
        training = around if training is None else training
        # Of the pairs that flow between quantized layers, the integers stand for both.
        sources = tuple(values[id(tensor)] for tensor in call.input_tensors if tensor.shape)
        if isinstance(layer, keras.Model):
            inner = functional(layer)
            own = dict(zip(map(id, _ordered(inner, call)), sources, strict=True))
            _walk(layer, nodes, own, training)
            ends = [own[id(tensor)] for tensor in inner.outputs]
            values.update(zip(map(id, call.outputs), ends, strict=True))
            continue
        oddity = f"it is called with {', '.join(sorted(given))}" if given else None
        if training and _takes_training(layer):
            oddity = "it is called with training=True; leave that to fit"
        results = [tensor for tensor in call.outputs if tensor.shape]
        if len(results) != 1:
            oddity = f"it has {len(results)} outputs"
        if not model.trainable and getattr(layer, "trainable_variables", None):
            oddity = f"trainable inside the model {model.name!r}, which is not: set both the same"
        values.update(dict.fromkeys(map(id, results), len(nodes)))
        shape = tuple(results[0].shape)
        arguments = tuple(call.arguments.args)
        nodes.append(
            Node(len(nodes), layer, sources, shape, training is False, oddity, arguments, call=call)
        )


def _takes_training(layer: Any) -> bool:
    return "training" in inspect.signature(layer.call).parameters


def _training_of(layer: Any, recorded: bool | None) -> bool | None:
    """Return what a call says of ``training``; None: nothing.

    Keras records the default of a call that says nothing: False for Dropout, True for random
    augmentation.
    """
    parameter = inspect.signature(layer.call).parameters.get("training")
    return None if parameter is not None and recorded == parameter.default else recorded


def _ordered(inner: Any, call: Any) -> list[Any]:
    """Return a nested model's inputs in the order of the tensors it is called with."""
    given = call.arguments.args[0] if call.arguments.args else None
    if isinstance(given, Mapping) and isinstance(inner._inputs_struct, Mapping):
        return [inner._inputs_struct[key] for key in sorted(given)]
    return list(inner.inputs)
