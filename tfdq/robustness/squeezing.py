"""Put feature squeezing in front of a model."""

from __future__ import annotations

from collections.abc import Sequence

import tf_keras

from tfdq.mistakes import WrongTypeError
from tfdq.quantization.graph import read_graph
from tfdq.quantization.squeezing import BitDepthSqueeze, MedianSqueeze
from tfdq.quantization.wrapper import InputQuantizer

__all__ = ["BitDepthSqueeze", "MedianSqueeze", "squeeze"]


def squeeze(
    model: tf_keras.Model, squeezers: Sequence[tf_keras.layers.Layer], name: str | None = None
) -> tf_keras.Model:
    """Put squeezing layers in front of a model, sharing its weights.

    The result is attacked like any other model: the gradient goes through the squeezers
    (straight-through where they round), which is the adaptive attack. Attacking `model` and
    feeding the images to the result is the oblivious one, and is never enough.

    A quantization-aware model takes images of 8 bits, and so does the result: a copy of the
    model's own input quantizer comes before the squeezers. It can be exported
    (`tflite_export.convert`), squeezers and all, and the file computes what the result computes.
    To train with squeezers, squeeze the float model and quantize that.

    Args:
        model: A tf_keras model with one image input, trained or not; it is not changed.
        squeezers: Layers in the order they act, e.g. `[BitDepthSqueeze(4), MedianSqueeze(2)]`.
        name: Name of the new model, `"squeezed_<model name>"` by default.

    Returns:
        A tf_keras Functional model: input, the copy of the input quantizer if there is one,
        squeezers, then `model` as one nested layer.

    Raises:
        ValueError: If there are no squeezers.
        TypeError: If `model` is not a built tf_keras model with one input, or a squeezer is not a
            tf_keras layer.

    Example:
        >>> defended = squeeze(model, [BitDepthSqueeze(4), MedianSqueeze(2)])
        >>> x_adv = attack("pgd", defended, x, y, 8 / 255)       # adaptive: through the squeezers
    """
    if not squeezers:
        raise ValueError("squeezers is empty: give at least one layer, e.g. [BitDepthSqueeze(4)]")
    if not isinstance(model, tf_keras.Model) or not getattr(model, "inputs", None):
        raise WrongTypeError(
            f"squeeze needs a built tf_keras model, got {type(model).__name__}; call the model on "
            "one batch first, or convert a Keras 3 model with tfdq.from_keras3"
        )
    if len(model.inputs) != 1:
        raise WrongTypeError(
            f"squeeze needs a model with one input, this one has {len(model.inputs)}"
        )
    for layer in squeezers:
        if not isinstance(layer, tf_keras.layers.Layer):
            raise WrongTypeError(f"squeezers must be tf_keras layers, got {type(layer).__name__}")
    image = tf_keras.Input(model.input_shape[1:], name="image", dtype=model.inputs[0].dtype)
    x = image
    own = _input_quantizer(model)
    if own is not None:
        copy = InputQuantizer.from_config({**own.get_config(), "name": "quant_image"})
        x = copy(x)
        copy.set_weights(own.get_weights())
    for layer in squeezers:
        x = layer(x)
    return tf_keras.Model(image, model(x), name=name or f"squeezed_{model.name}")


def _input_quantizer(model: tf_keras.Model) -> InputQuantizer | None:
    """Return the quantizer of a quantization-aware model's input; None for another model."""
    if not getattr(model, "_is_graph_network", False):
        return None
    graph = read_graph(model)
    for node in graph.nodes:
        if isinstance(node.layer, InputQuantizer) and node.inputs == graph.inputs:
            return node.layer
    return None
