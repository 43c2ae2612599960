"""Compute what chosen layers of a model give, in inference mode, without touching the model."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras

from tfdq.quantization import read_graph


class LayerOutputs:
    """The outputs of chosen layer calls of a tf_keras model, as one traceable function.

    The layers are called on tensors in the order of the graph, nested models flattened. So no
    Keras node is added to them, and what a layer shared with another model gives is not in doubt.

    Args:
        model: A built Functional or Sequential tf_keras model with one input.
        positions: Positions of the calls in `read_graph(model).nodes`.

    Raises:
        ValueError: If the model has several inputs, is no graph of layers, or has an operation
            that is not a layer (`x + y` on tensors: use `tf_keras.layers.Add`).
    """

    def __init__(self, model: tf_keras.Model, positions: Sequence[int]) -> None:
        graph = read_graph(model)
        if len(graph.inputs) != 1:
            raise ValueError(f"{model.name!r} has {len(graph.inputs)} inputs; one is needed")
        last = max(positions)
        self._nodes = graph.nodes[: last + 1]
        self._source = graph.inputs[0]
        self._positions = tuple(positions)
        for node in self._nodes:
            if type(node.layer).__name__ in ("TFOpLambda", "SlicingOpLambda"):
                raise ValueError(
                    f"{model.name!r} calls the TensorFlow operation {node.layer.name!r} on Keras "
                    "tensors: use a layer for it, e.g. tf_keras.layers.Add for x + y"
                )

    def __call__(self, x: tf.Tensor) -> list[tf.Tensor]:
        """Return the outputs at the positions, for images of shape (n, ...)."""
        values: dict[int, tf.Tensor] = {self._source: x}
        for node in self._nodes:
            if node.index in values:
                continue
            taken = [values[source] for source in node.inputs]
            values[node.index] = _call(node.layer, taken if len(taken) > 1 else taken[0])
        return [values[position] for position in self._positions]


def _call(layer: Any, inputs: Any) -> tf.Tensor:
    if "training" in inspect.signature(layer.call).parameters:
        return layer(inputs, training=False)
    return layer(inputs)
