"""Which function is which activation; those of Keras 3 that tf_keras lacks."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
import tf_keras

# A function is known by its identity: one of the user's own may have the name of another.
_KNOWN: dict[str, tuple[Any, ...]] = {
    "linear": (None, tf_keras.activations.linear, keras.activations.linear, tf.identity),
    "relu": (tf_keras.activations.relu, keras.activations.relu, keras.ops.relu, tf.nn.relu),
    "relu6": (keras.activations.relu6, keras.ops.relu6, tf.nn.relu6),
    "softmax": (
        tf_keras.activations.softmax,
        keras.activations.softmax,
        keras.ops.softmax,
        tf.nn.softmax,
    ),
}


def activation_name(function: Any) -> str | None:
    """Return which activation a function is: linear, relu, relu6 or softmax; None: another one.

    Args:
        function: a layer's ``activation``; None is linear.
    """
    for name, known in _KNOWN.items():
        if any(function is one for one in known):
            return name
    return None


@tf_keras.utils.register_keras_serializable("tfdq")
def hard_sigmoid(x: tf.Tensor) -> tf.Tensor:
    """Compute `relu6(x + 3) / 6`, Keras 3's hard sigmoid (tf_keras' has another slope)."""
    return tf.nn.relu6(x + 3.0) / 6.0


@tf_keras.utils.register_keras_serializable("tfdq")
def hard_silu(x: tf.Tensor) -> tf.Tensor:
    """Compute `x * relu6(x + 3) / 6`, also called hard swish (Howard et al. 2019, MobileNetV3)."""
    return x * hard_sigmoid(x)
