"""Activations of Keras 3 that tf_keras lacks, or has under the same name with another slope."""

from __future__ import annotations

import tensorflow as tf
import tf_keras


@tf_keras.utils.register_keras_serializable("tfdq")
def hard_sigmoid(x: tf.Tensor) -> tf.Tensor:
    """Compute `relu6(x + 3) / 6`, Keras 3's hard sigmoid (tf_keras' has another slope)."""
    return tf.nn.relu6(x + 3.0) / 6.0


@tf_keras.utils.register_keras_serializable("tfdq")
def hard_silu(x: tf.Tensor) -> tf.Tensor:
    """Compute `x * relu6(x + 3) / 6`, also called hard swish (Howard et al. 2019, MobileNetV3)."""
    return x * hard_sigmoid(x)
