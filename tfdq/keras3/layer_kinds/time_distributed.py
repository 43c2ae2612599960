"""TimeDistributed of layers that treat each step of a sequence alike, and RepeatVector."""

from __future__ import annotations

import keras

from tfdq.keras3.graph import Node
from tfdq.keras3.layer_kinds.registry import Kind, channels_problem, register_kind
from tfdq.keras3.layer_kinds.sequence import AsSequence

_L = keras.layers
_OF_EACH_STEP = (_L.Dense, _L.Activation, _L.ReLU, _L.LeakyReLU, _L.ELU, _L.Softmax, _L.Dropout)
"""What acts on the last axis, or on each entry, and takes a sequence as it is."""


def _parts(node: Node) -> list[keras.layers.Layer]:
    """Return the layer inside, which may have further calls; a Flatten as the Reshape it is."""
    inside = node.layer.layer
    if type(inside) is _L.Flatten:
        return [_L.Reshape(node.shape[1:], name=node.layer.name)]
    return [inside]


def _problem(node: Node) -> str | None:
    inside = node.layer.layer
    if type(inside) is _L.Flatten:
        return channels_problem(inside)
    if type(inside) not in _OF_EACH_STEP or len(node.arguments[0].shape) != 3:
        known = ", ".join(kind.__name__ for kind in (*_OF_EACH_STEP, _L.Flatten))
        return (
            f"a TimeDistributed of {type(inside).__name__} on {node.arguments[0].shape}; one of "
            f"{known} on a sequence of vectors is taken, of images use layers on each image"
        )
    return None


def _repeated(node: Node) -> list[keras.layers.Layer]:
    """Return the vector as an image of one pixel, enlarged."""
    name, count = node.layer.name, node.layer.n
    return [
        _L.Reshape((1, 1, node.shape[-1]), name=f"{name}_image"),
        _L.UpSampling2D((1, count), name=f"{name}_repeated"),
        AsSequence(name=name),
    ]


register_kind(Kind((_L.TimeDistributed,), None, _problem, parts=_parts))
register_kind(Kind((_L.RepeatVector,), None, parts=_repeated))
