"""What a float model has that a quantized one would lose; it is refused by name instead."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import keras

from tfdq.keras3.graph import Graph, Node


def input_problem(layer: Any) -> str | None:
    """Return what is wrong with an input, or None."""
    for kind in ("sparse", "ragged", "optional"):
        if getattr(layer, kind, False):
            return f"a {kind} input"
    return None


def with_problems(graph: Graph) -> Graph:
    """Return a graph whose calls say in `Node.oddity` what of them, if anything, would be lost."""
    nodes = tuple(
        replace(node, oddity=_layer_problem(node)) if node.inputs and node.oddity is None else node
        for node in graph.nodes
    )
    return replace(graph, nodes=nodes)


def _layer_problem(node: Node) -> str | None:
    layer = node.layer
    if any(getattr(t, "_keras_mask", None) is not None for t in node.call.input_tensors):
        return "its input carries a mask, which quantized layers do not pass on"
    if getattr(layer, "activity_regularizer", None) is not None:
        return "an activity_regularizer, which acts on a result that is folded away"
    wide = {
        str(weight.dtype)
        for weight in getattr(layer, "weights", ())
        if "float" in str(weight.dtype) and str(weight.dtype) != "float32"
    }
    if wide:
        return (
            f"weights of type {', '.join(sorted(wide))}; build it with float32 weights, as "
            "under the policies float32, mixed_bfloat16 and mixed_float16"
        )
    unknown = _unregistered(layer)
    if unknown is not None:
        return (
            f"its {unknown} cannot be made again from its configuration, as a saved model needs: "
            "register it with keras.saving.register_keras_serializable"
        )
    alone = [v.name for v in getattr(layer, "_trainable_variables", ()) if not v.trainable]
    if getattr(layer, "trainable", False) and alone:
        return f"its {' and '.join(alone)} alone is not trainable; set trainable of the layer"
    return None


def _unregistered(layer: Any) -> str | None:
    """Return the name of a regularizer or a constraint that Keras does not find again, or None."""
    kinds = {"_regularizer": keras.regularizers, "_constraint": keras.constraints}
    for name, value in vars(layer).items():
        for ending, kind in kinds.items():
            if value is not None and name.endswith(ending):
                try:
                    kind.get(kind.serialize(value))
                except (TypeError, ValueError, NotImplementedError):
                    return name
    return None
