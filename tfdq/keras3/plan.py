"""Decide which calls of a float model become which quantized layer."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import keras

from tfdq.keras3.float_model import input_problem
from tfdq.keras3.graph import Graph, Node
from tfdq.keras3.layer_kinds import KINDS, QuantizedLayer, Step
from tfdq.keras3.layer_kinds.in_float import IN_FLOAT
from tfdq.keras3.layer_kinds.registry import RELUS, Kind, activation_of

_PRIVATE = ("tfdq.", "keras.src.applications.")
"""Where the layers are that nobody writes."""


def plan(graph: Graph, skip: Collection[str] = ()) -> list[Step]:
    """Return the steps that quantize a model.

    Args:
        graph: the calls of the float model.
        skip: names of layers that stay in float.

    Raises:
        ValueError: some layers cannot be quantized; all of them are listed.
    """
    _check(graph, skip)
    consumers = graph.consumers()
    taken: set[int] = set()
    steps = []

    def follower(index: int, role: str) -> Node | None:
        if index in graph.outputs or len(consumers[index]) != 1:
            return None
        node = graph.nodes[consumers[index][0]]
        if node.layer.name in skip:
            return None
        return node if _kind(node).role == role and len(node.inputs) == 1 else None

    for node in graph.nodes:
        if not node.inputs or node.index in taken:
            continue
        if node.layer.name in skip:
            steps.append(Step(node, IN_FLOAT, node.index))
            continue
        kind = _kind(node)
        own = kind.role in ("kernel", "activation")
        activation = (activation_of(node.layer) or "linear") if own else "linear"
        step = Step(node, kind, node.index, activation=activation)
        for role in kind.takes_in:
            behind = follower(step.result, role)
            if behind is None or step.activation != "linear":
                continue
            if role == "norm":
                step = replace(
                    step, norm=behind.layer, norm_inference=behind.inference, result=behind.index
                )
            elif activation_of(behind.layer) in RELUS:
                relu = str(activation_of(behind.layer))
                step = replace(step, activation=relu, result=behind.index)
            else:
                continue
            taken.add(behind.index)
        steps.append(step)
    return steps


def _kind(node: Node) -> Kind:
    return KINDS[type(node.layer)]


def _check(graph: Graph, skip: Collection[str]) -> None:
    """Raise one error that lists every call that cannot be quantized."""
    problems = []
    calls: dict[int, int] = {}
    for node in graph.nodes:
        calls[id(node.layer)] = calls.get(id(node.layer), 0) + 1
    told: set[int] = set()
    for node in graph.nodes:
        if id(node.layer) not in told:
            if not node.inputs:
                problem = input_problem(node.layer)
            elif node.layer.name in skip:
                problem = _problem_in_float(node)
            else:
                problem = _problem(node, calls[id(node.layer)])
            if problem is not None:
                told.add(id(node.layer))
                problems.append(f"{node.layer.name!r} ({type(node.layer).__name__}): {problem}")
    if problems:
        supported = sorted(
            kind.__name__
            for kind in KINDS
            if issubclass(kind, keras.layers.Layer) and not kind.__module__.startswith(_PRIVATE)
        )
        raise ValueError(
            f"{len(problems)} layer(s) cannot be quantized:\n  - "
            + "\n  - ".join(problems)
            + f"\nReplace each by layers that can: {', '.join(supported)}; "
            "or quantize tfdq.from_keras3(model), a tf_keras model, whose layers are not quite the "
            "same; or leave it in float with skip=[...], and train without an export"
        )


def _problem_in_float(node: Node) -> str | None:
    results = [tensor for tensor in node.call.outputs if tensor.shape]
    if len(results) != 1:
        return f"it is to stay in float and has {len(results)} outputs; only one can be quantized"
    return None


def _problem(node: Node, calls: int) -> str | None:
    layer: Any = node.layer
    if isinstance(layer, QuantizedLayer):
        return "it is quantized already; quantize the float model it was made from"
    if node.oddity is not None:
        return node.oddity
    kind = KINDS.get(type(layer))
    if kind is None:
        return "there is no rule for this class"
    alone = kind.quantize is not None and not kind.group
    if alone and getattr(layer, "weights", None) and calls > 1:
        return (
            f"it has weights, which its kind does not share, and is called {calls} times; use one "
            "layer for each call, or name their group in its Kind"
        )
    if any(size is None for size in node.shape[1:]):
        return (
            f"a result of shape {node.shape}; give quantize_model the input_shape, such as "
            "(96, 96, 3), or build the model for inputs of one size"
        )
    return kind.problem(node)
