"""Layers that change their source in training only: dropout, noise, augmentation."""

from __future__ import annotations

from typing import Any

import keras
from keras.src.applications.convnext import StochasticDepth

from tfdq.description import Computation, Identity, Shape
from tfdq.keras3.layer_kinds.base import Flow, Phase, register
from tfdq.keras3.layer_kinds.registry import Kind, Request, register_kind
from tfdq.keras3.layer_kinds.shape import MovingLayer

LAYERS = (
    keras.layers.AlphaDropout,
    keras.layers.Dropout,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
    keras.layers.Identity,
    keras.layers.RandomBrightness,
    keras.layers.RandomContrast,
    keras.layers.RandomFlip,
    keras.layers.RandomRotation,
    keras.layers.RandomTranslation,
    keras.layers.RandomZoom,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
    StochasticDepth,
)
"""Layers that are the identity at inference."""


@register
class TrainingOnly(MovingLayer):
    """A layer of Keras in training, on the real values; nothing at inference.

    Args:
        layer: the layer, or its configuration.
    """

    def __init__(self, layer: keras.layers.Layer | dict[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if isinstance(layer, dict):
            layer = keras.layers.deserialize(layer)
        self.layer = layer

    def train(self, flow: Any, phase: Phase) -> Flow:
        """Return what the layer makes of the values, as multiples of the same step."""
        q, step = flow
        if not phase.noise:
            return q, step
        return self.layer(q * step, training=True) / step, step

    def move(self, q: Any) -> Any:
        """Return the integers as they are."""
        return q

    def result_shape(self, shapes: Any) -> Shape:
        """Return the shape of the source."""
        return tuple(shapes)

    def computation(self) -> Computation:
        """Return what the layer computes."""
        return Identity()

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {**super().get_config(), "layer": keras.layers.serialize(self.layer)}


def _quantize(request: Request) -> TrainingOnly:
    config = keras.layers.serialize(request.layer)
    config["config"] |= {"dtype": "float32", "name": f"{request.layer.name}_in_training"}
    return TrainingOnly(config, **request.common)


register_kind(Kind(LAYERS, _quantize))
