"""Write a float model in terms that can be quantized: layers that are several in one, as parts.

Affine maps of each channel that follow each other become one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import keras

from tfdq.keras3.graph import Graph, Node
from tfdq.keras3.layer_kinds import KINDS
from tfdq.keras3.layer_kinds.registry import activation_of
from tfdq.keras3.layer_kinds.scaling import Scaling, hard_sigmoid_of, joined
from tfdq.keras3.layer_kinds.sequence import AsImage, AsSequence, is_elementwise


def expanded(graph: Graph, skip: Collection[str] = ()) -> Graph:
    """Return a model whose every call is one that can be quantized, where there is no problem.

    Args:
        graph: the calls of the float model.
        skip: names of layers that stay as they are.
    """
    # With the layer itself: the number of one that is gone may be given to another.
    made: dict[int, tuple[Any, list[keras.layers.Layer]]] = {}
    position = 0
    while position < len(graph.nodes):
        node = graph.nodes[position]
        parts = None if node.layer.name in skip else _parts(node)
        if parts:
            # All calls of a layer have the weights of the parts of the first.
            _, first = made.setdefault(id(node.layer), (node.layer, parts))
            weighted = iter([part for part in first if part.weights])
            parts = [next(weighted) if part.weights else part for part in parts]
            # The parts may have parts themselves.
            graph = _replaced(graph, (position,), parts)
        else:
            position += 1
    return _merged(_without_detours(_with_torn_layers(graph, made), skip), skip)


def _with_torn_layers(graph: Graph, made: Collection[int]) -> Graph:
    """Return a model that says in `Node.oddity` which layers are parts in some calls only.

    Args:
        graph: the calls.
        made: ids of the layers that became parts somewhere.
    """
    oddity = (
        "it has weights and is called on tensors of several ranks, on which it would become layers "
        "with weights of their own; Reshape them to one rank"
    )
    return replace(
        graph,
        nodes=tuple(
            replace(node, oddity=oddity)
            if id(node.layer) in made
            and getattr(node.layer, "weights", None)
            and node.oddity is None
            else node
            for node in graph.nodes
        ),
    )


def _parts(node: Node) -> list[keras.layers.Layer] | None:
    kind = KINDS.get(type(node.layer))
    if kind is None or not node.inputs or node.oddity is not None or kind.problem(node):
        return None
    return kind.parts(node)


def _without_detours(graph: Graph, skip: Collection[str]) -> Graph:
    """Return a model in which sequences stay images of one row from layer to layer."""
    found = _delayed(graph, skip)
    while found is not None:
        first, second = found
        layers = [second.layer, AsSequence(name=second.layer.name)]
        graph = _replaced(graph, (first.index, second.index), layers, second)
        found = _delayed(graph, skip)
    sources = {
        node.index: graph.nodes[node.inputs[0]].inputs[0]
        for node in graph.nodes
        if isinstance(node.layer, AsImage)
        and isinstance(graph.nodes[node.inputs[0]].layer, AsSequence)
    }
    nodes = [
        replace(node, inputs=tuple(sources.get(i, i) for i in node.inputs)) for node in graph.nodes
    ]
    taken = {i for node in nodes for i in node.inputs} | set(graph.outputs)
    shapes = (AsImage, AsSequence)
    kept = [n for n in nodes if n.index in taken or not isinstance(n.layer, shapes)]
    places = {node.index: place for place, node in enumerate(kept)}
    return replace(
        graph,
        nodes=tuple(
            replace(node, index=places[node.index], inputs=tuple(places[i] for i in node.inputs))
            for node in kept
        ),
        outputs=tuple(places[index] for index in graph.outputs),
    )


def _delayed(graph: Graph, skip: Collection[str]) -> tuple[Node, Node] | None:
    """Return a change to a sequence and what may as well act before it, the first such."""
    consumers = graph.consumers()
    for node in graph.nodes:
        if isinstance(node.layer, AsSequence) and len(consumers[node.index]) == 1:
            behind = graph.nodes[consumers[node.index][0]]
            outputs = {node.index, behind.index} & set(graph.outputs)
            plain = behind.oddity is None and behind.layer.name not in skip
            if not outputs and plain and is_elementwise(behind.layer):
                return node, behind
    return None


def _merged(graph: Graph, skip: Collection[str]) -> Graph:
    """Return a model in which affine maps in a row are one, and hard sigmoids are activations."""
    found = _mergeable(graph, skip)
    while found is not None:
        graph = _replaced(graph, *found)
        found = _mergeable(graph, skip)
    return graph


def _mergeable(
    graph: Graph, skip: Collection[str]
) -> tuple[tuple[int, ...], list[keras.layers.Layer]] | None:
    """Return calls that follow each other and the layer that they are, the first such."""
    consumers = graph.consumers()

    def follower(node: Node) -> Node | None:
        if len(consumers[node.index]) != 1 or node.index in graph.outputs:
            return None
        found = graph.nodes[consumers[node.index][0]]
        return None if found.layer.name in skip else found

    for first in graph.nodes:
        second = follower(first) if isinstance(first.layer, Scaling) else None
        if second is None:
            continue
        if isinstance(second.layer, Scaling):
            return (first.index, second.index), [joined(first.layer, second.layer)]
        third = follower(second) if activation_of(second.layer) == "relu6" else None
        if third is not None and isinstance(third.layer, Scaling):
            layer = hard_sigmoid_of(first.layer, third.layer)
            if layer is not None:
                return (first.index, second.index, third.index), [layer]
    return None


def _replaced(
    graph: Graph,
    chain: Sequence[int],
    layers: Sequence[Any],
    known_as: Node | None = None,
) -> Graph:
    """Return a model with other layers in place of calls that follow each other.

    Args:
        graph: the model.
        chain: the calls; but for the last, only the next one takes the result of each.
        layers: what stands in their place, one after the other; a Subtract takes its left side from
            what the first call takes.
        known_as: the call by whose name settings know them; None: the first.
    """
    nodes: list[Node] = []
    places: dict[int, int] = {}
    for node in graph.nodes:
        if node.index in chain[:-1]:
            continue
        if node.index != chain[-1]:
            sources = tuple(places[i] for i in node.inputs)
            places[node.index] = len(nodes)
            nodes.append(replace(node, index=len(nodes), inputs=sources))
            continue
        first = graph.nodes[chain[0]]
        sources = start = tuple(places[i] for i in first.inputs)
        shape = graph.nodes[first.inputs[0]].shape
        named = known_as or first
        name = named.settings_name or named.layer.name
        for layer in layers:
            given: tuple[Any, ...] = (keras.KerasTensor(shape),)
            if isinstance(layer, keras.layers.Subtract):
                sources = (*start, *sources)
                given = ([keras.KerasTensor(nodes[i].shape) for i in sources],)
                shape = nodes[start[0]].shape
            elif isinstance(layer, keras.layers.Layer):
                shape = tuple(layer.compute_output_shape(shape))
            nodes.append(Node(len(nodes), layer, sources, shape, node.inference, None, given, name))
            sources = (len(nodes) - 1,)
        places[node.index] = len(nodes) - 1
    return replace(
        graph, nodes=tuple(nodes), outputs=tuple(places[index] for index in graph.outputs)
    )
