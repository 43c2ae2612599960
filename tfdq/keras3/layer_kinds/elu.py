"""ELU, the layer and the operation: the activation, where its scale below 0 is 1."""

from __future__ import annotations

import keras

from tfdq.keras3.graph import Node
from tfdq.keras3.layer_kinds.registry import Kind, operation_of, register_kind


def _parts(node: Node) -> list[keras.layers.Layer]:
    return [keras.layers.Activation("elu", name=node.layer.name)]


def _problem(node: Node) -> str | None:
    alpha = float(node.layer.alpha)
    return None if alpha == 1 else f"alpha={alpha:g}; the integer operator has 1"


_ELU = operation_of(keras.ops.elu(keras.KerasTensor((None, 1))))
register_kind(Kind((keras.layers.ELU, _ELU), None, _problem, parts=_parts))
