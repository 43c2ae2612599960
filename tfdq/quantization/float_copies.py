"""Copies of float layers: with the objects, flags and settings that Keras' configs leave out."""

from __future__ import annotations

from typing import Any

import tf_keras

from tfdq.quantization.layers import norm_config

_FUNCTIONS = ("activation", "recurrent_activation")


def constructor_arguments(layer: tf_keras.layers.Layer) -> dict[str, Any]:
    """Return a layer's config with its own functions, regularizers and constraints.

    Keras writes them as names, by which a class or function of the user's that is called as one
    of Keras' would be taken for that.
    """
    is_norm = isinstance(layer, tf_keras.layers.BatchNormalization)
    config = norm_config(layer) if is_norm else layer.get_config()
    for key in config:
        value = getattr(layer, key, None)
        if (key in _FUNCTIONS and callable(value)) or isinstance(
            value, (tf_keras.regularizers.Regularizer, tf_keras.constraints.Constraint)
        ):
            config[key] = value
    return config


def copy_layer(layer: tf_keras.layers.Layer, name: str) -> tf_keras.layers.Layer:
    """Return an unbuilt copy of a float layer under another name.

    ``finish_copy`` does the rest after the copy was called.
    """
    if isinstance(layer, tf_keras.layers.Lambda):
        # Its config holds the code of the function, without what that refers to.
        copy = type(layer)(
            layer.function,
            output_shape=layer._output_shape,
            mask=getattr(layer, "mask", None),
            arguments=dict(layer.arguments),
            name=name,
            trainable=layer.trainable,
        )
    else:
        with tf_keras.saving.custom_object_scope(_objects_of(layer)):
            copy = type(layer).from_config({**constructor_arguments(layer), "name": name})
    _give_unwritten(layer, copy)
    return copy


def finish_copy(layer: tf_keras.layers.Layer, copy: tf_keras.layers.Layer) -> None:
    """Give a copy that is built the weights, flags and functions of the layer and those inside it.

    Raises:
        ValueError: the copy has other layers inside.
    """
    inside, copied = list(layer._flatten_layers()), list(copy._flatten_layers())
    if [type(one) for one in inside] != [type(one) for one in copied]:
        raise ValueError(
            f"layer {layer.name!r} ({type(layer).__name__}) cannot be copied: what its get_config "
            "describes has other layers inside; correct its get_config"
        )
    # Setting a layer's flag sets those of the layers inside, which come after it.
    for one, other in zip(inside, copied, strict=True):
        other.trainable = one.trainable
        _give_unwritten(one, other)
    copy.set_weights(layer.get_weights())
    if isinstance(copy, tf_keras.layers.experimental.preprocessing.PreprocessingLayer):
        # Such as Normalization, which computes with tensors derived from its weights.
        copy.finalize_state()


def _give_unwritten(layer: tf_keras.layers.Layer, copy: tf_keras.layers.Layer) -> None:
    """Give a copy what a config may leave out, or have by a name only."""
    copy._activity_regularizer = layer._activity_regularizer
    copy._autocast = layer._autocast
    for key in _FUNCTIONS:
        function = getattr(layer, key, None)
        if callable(function) and getattr(copy, key, None) is not function:
            setattr(copy, key, function)


def _objects_of(layer: tf_keras.layers.Layer) -> dict[str, Any]:
    """Return the user's functions inside a layer, by the names that its config has them under."""
    found = {}
    for inner in layer._flatten_layers():
        for key in _FUNCTIONS:
            function = getattr(inner, key, None)
            if callable(function) and hasattr(function, "__name__"):
                found[function.__name__] = function
    return found
