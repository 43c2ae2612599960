"""Keras 3 models on any backend as TensorFlow functions that attacks differentiate."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfdq.which_keras import is_keras3_model


def on_tensorflow(
    function: Callable[[Any], Any], model: Any, outputs: int
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return a function of a model as one of TensorFlow, with its gradient.

    Args:
        function: from a batch of images to ``(n, outputs)``, on tensors of the model's backend;
            returned as it is where that is TensorFlow.
        model: whose variables it reads.
        outputs: columns of the result.
    """
    if not _runs_elsewhere(model):
        return function
    import keras

    if keras.backend.backend() == "jax":
        from tfdq.keras3.jax_gradients import JaxGradients

        gradients: Any = JaxGradients(function, model.variables)
    else:
        from tfdq.keras3.torch_gradients import TorchGradients

        gradients = TorchGradients(function)

    @tf.custom_gradient
    def differentiable(x: tf.Tensor) -> tuple[tf.Tensor, Any]:
        values = tf.numpy_function(gradients.values, [x], tf.float32, stateful=True)
        values.set_shape((x.shape[0], outputs))

        def pull_back(upstream: tf.Tensor) -> tf.Tensor:
            found = tf.numpy_function(gradients.gradient, [x, upstream], tf.float32, stateful=True)
            found.set_shape(x.shape)
            return found

        return values, pull_back

    return lambda x: differentiable(tf.cast(x, tf.float32))


def _runs_elsewhere(model: Any) -> bool:
    """Return whether a model is one of Keras 3, which runs on another backend than TensorFlow."""
    return is_keras3_model(model) and sys.modules["keras"].backend.backend() != "tensorflow"
