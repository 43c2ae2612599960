"""Values and gradients of a function on TensorFlow, from and to NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfdq.robustness.gradients.interface import LossFunction


class TensorflowGradients:
    """A function of images, traced once for every batch size; see `Gradients`.

    Args:
        function: From a batch of images to a tensor with one row for each.
        differentiated: What gradients are taken of.
    """

    def __init__(
        self, function: Callable[[Any], Any], differentiated: Callable[[Any], Any]
    ) -> None:
        self._function = function
        self._differentiated = differentiated
        self._compiled: dict[Any, Callable[..., Any]] = {}

    def values(self, x: np.ndarray) -> np.ndarray:
        """Return the function's values for float32 images, float32 `(n, ...)`."""
        key = ("values", x.shape[1:])
        if key not in self._compiled:

            def forward(images: tf.Tensor) -> tf.Tensor:
                return tf.cast(self._function(images), tf.float32)

            self._compiled[key] = _traced(forward, tf.TensorSpec([None, *x.shape[1:]], tf.float32))
        return self._compiled[key](tf.constant(x)).numpy()

    def pull_back(self, x: np.ndarray, cotangents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return values and the gradient of their weighted sum; see `Gradients`."""
        key = ("pull back", x.shape[1:])
        if key not in self._compiled:

            def forward_backward(images: tf.Tensor, upstream: tf.Tensor) -> Any:
                with tf.GradientTape(watch_accessed_variables=False) as tape:
                    tape.watch(images)
                    values = tf.cast(self._differentiated(images), tf.float32)
                gradient = tape.gradient(values, images, upstream, unconnected_gradients="zero")
                return values, gradient

            self._compiled[key] = _traced(
                forward_backward,
                tf.TensorSpec([None, *x.shape[1:]], tf.float32),
                tf.TensorSpec([None, *cotangents.shape[1:]], tf.float32),
            )
        values, gradient = self._compiled[key](tf.constant(x), tf.constant(cotangents))
        return values.numpy(), gradient.numpy()

    def loss_gradient(
        self, loss: LossFunction, x: np.ndarray, y: np.ndarray, aux: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return logits, losses and their gradients; see `Gradients`."""
        key = (loss, x.shape[1:])
        if key not in self._compiled:

            def forward_backward(images: tf.Tensor, labels: tf.Tensor, aux: tf.Tensor) -> Any:
                with tf.GradientTape(watch_accessed_variables=False) as tape:
                    tape.watch(images)
                    logits = self._differentiated(images)
                    losses = loss(logits, labels, aux)
                gradient = tape.gradient(losses, images, unconnected_gradients="zero")
                return logits, losses, gradient

            self._compiled[key] = _traced(
                forward_backward,
                tf.TensorSpec([None, *x.shape[1:]], tf.float32),
                tf.TensorSpec([None], tf.int32),
                tf.TensorSpec([None], tf.float32),
            )
        found = self._compiled[key](tf.constant(x), tf.constant(y), tf.constant(aux))
        logits, losses, gradient = (part.numpy() for part in found)
        return logits, losses, gradient


def _traced(function: Callable[..., Any], *signature: tf.TensorSpec) -> Callable[..., Any]:
    return tf.function(function, input_signature=list(signature), autograph=False)
