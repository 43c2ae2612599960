"""The logits of a Keras model that may end in a softmax."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from tfdq.which_keras import is_tf_keras_model


def logits_function(model: Any) -> tuple[Callable[[Any], Any], bool]:
    """A function from images to logits in inference mode, with a final softmax taken off.

    A softmax saturates: its gradients vanish where the model is confident, and an attack through it
    reports a robustness that is not there. The softmax is found when it is the model's last layer
    (``Softmax``, ``Activation("softmax")``, wrapped by a quantizer or not) or the activation of a
    last ``Dense`` layer. So is the sigmoid of a model of two classes with one output.

    Args:
        model: A tf_keras or Keras 3 model with one input and one output.

    Returns:
        The function, and whether a softmax or sigmoid was taken off.
    """

    def whole(x: Any) -> Any:
        return model(x, training=False)

    deployed = _before_deployed_end(model)
    if deployed is not None:

        def integers_times_step(x: Any) -> Any:
            integers, step = deployed(x, training=False)
            return integers * step

        return integers_times_step, True
    last = _output_node(model)
    if last is None:
        return whole, False
    layer, features = last
    inner = getattr(layer, "layer", layer)
    kind = type(inner).__name__
    activations = ("softmax", "sigmoid") if model.outputs[0].shape[-1] == 1 else ("softmax",)
    if kind == "Softmax" or (kind == "Activation" and _activation_of(inner) in activations):
        before = _model_class(model)(model.inputs, features)
        return (lambda x: before(x, training=False)), True
    if inner is layer and kind == "Dense" and _activation_of(layer) in activations:
        before = _model_class(model)(model.inputs, features)

        def dense_without_activation(x: Any) -> Any:
            return _affine(model, before(x, training=False), layer)

        return dense_without_activation, True
    return whole, False


def _before_deployed_end(model: Any) -> Any:
    """The part of a model of `tfdq.keras3` before its softmax or sigmoid: integers and their step.

    None for any other model.
    """
    if "tfdq.keras3" not in sys.modules:
        return None  # then no model can have its layers
    import keras

    from tfdq.keras3 import QuantizedModel
    from tfdq.keras3.layer_kinds import QuantizedCurve, QuantizedSoftmax

    if not isinstance(model, QuantizedModel) or len(model.outputs) != 1:
        return None
    layer, index = model.outputs[0]._keras_history[:2]
    sigmoid = isinstance(layer, QuantizedCurve) and layer.function == "sigmoid"
    if isinstance(layer, QuantizedSoftmax) or (sigmoid and model.outputs[0].shape[-1] == 1):
        return keras.Model(model.inputs, list(layer._inbound_nodes[index].input_tensors))
    return None


def _activation_of(layer: Any) -> str:
    return getattr(getattr(layer, "activation", None), "__name__", "")


def _affine(model: Any, features: Any, layer: Any) -> Any:
    """What a Dense layer of a model computes without its activation."""
    if is_tf_keras_model(model):
        import tensorflow as tf

        logits = tf.linalg.matmul(features, tf.convert_to_tensor(layer.kernel))
        return logits if layer.bias is None else logits + tf.convert_to_tensor(layer.bias)
    from keras import ops

    logits = ops.matmul(features, layer.kernel)
    return logits if layer.bias is None else ops.add(logits, layer.bias)


def _model_class(model: Any) -> Any:
    """`Model` of the Keras the model was made with: tf_keras and Keras 3 do not mix."""
    return sys.modules["tf_keras" if is_tf_keras_model(model) else "keras"].Model


def _output_node(model: Any) -> tuple[Any, Any] | None:
    """The layer that makes the model's output and the tensor it takes; None if not known."""
    try:
        outputs = model.outputs
    except (AttributeError, ValueError):  # a subclassed or not yet built model
        return None
    history = getattr(outputs[0], "_keras_history", None) if outputs else None
    if history is None:
        return None
    layer, node_index = history[0], history[1]
    inputs = layer._inbound_nodes[node_index].input_tensors
    inputs = inputs if isinstance(inputs, list | tuple) else [inputs]
    return (layer, inputs[0]) if len(inputs) == 1 else None
