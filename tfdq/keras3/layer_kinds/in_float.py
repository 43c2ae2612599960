"""Layers that stay in float, because the caller said so: copied as they are."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from tfdq.keras3.layer_kinds.base import register
from tfdq.keras3.layer_kinds.registry import Kind, Step


@register
class AtInference(keras.layers.Layer):
    """A layer of one input that its model calls with ``training=False``.

    It is in inference mode in ``fit`` as well. A Functional model of Keras 3 tells all its layers
    that it trains, whatever they were called with.

    Args:
        layer: the layer.
    """

    def __init__(self, layer: keras.layers.Layer, **kwargs: Any) -> None:
        super().__init__(**{"name": layer.name, **kwargs})
        self.layer = layer

    def build(self, input_shape: Any) -> None:
        """Build the layer."""
        if not self.layer.built:
            self.layer.build(input_shape)

    def call(self, inputs: Any, **kwargs: Any) -> Any:
        """Return what the layer makes of its input at inference."""
        return self.layer(inputs, **{**kwargs, "training": False})

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor, the layer serialized."""
        return {
            **super().get_config(),
            "layer": keras.saving.serialize_keras_object(self.layer),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> AtInference:
        """Make the layer again from `get_config`."""
        return cls(**{**config, "layer": keras.saving.deserialize_keras_object(config["layer"])})


def copy_in_float(layer: Any, name: str, inference: bool) -> Any:
    """Return a layer or operation with the settings of another, without its weights.

    Args:
        layer: the other.
        name: of the copy.
        inference: it has one input, and the model calls it with ``training=False``.

    Raises:
        ValueError: its class does not make itself again from its configuration.
    """
    try:
        copy = type(layer).from_config({**layer.get_config(), "name": name})
        return AtInference(copy) if inference and isinstance(copy, keras.layers.Layer) else copy
    except (TypeError, NotImplementedError) as error:
        raise ValueError(
            f"layer {layer.name!r} ({type(layer).__name__}) is to stay in float, but is not made "
            f"again from its get_config(): {error}; give its class get_config and from_config"
        ) from error


def _load(step: Step, layer: Any) -> None:
    pairs = zip(getattr(step.node.layer, "weights", ()), getattr(layer, "weights", ()), strict=True)
    for old, new in pairs:
        new.assign(ops.convert_to_numpy(old))


IN_FLOAT = Kind((), None, role="in float", load=_load)
"""What is named in ``skip``: called on reals, its result quantized again."""
