"""The gradient of a scalar by a tensor inside a traced step, on each backend of Keras 3."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras


def input_gradient(function: Callable[[Any], Any], x: Any) -> Any:
    """Return the gradient of a function at a tensor; may be called while a step is traced.

    Args:
        function: from a tensor like ``x`` to a scalar; variables that it assigns stay as they are
            only inside a ``keras.StatelessScope`` of its own.
        x: float tensor of Keras' backend.

    Returns:
        A tensor like ``x``; zeros where the function does not depend on it.
    """
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return jax.grad(function)(x)
    if backend == "torch":
        import torch

        with torch.enable_grad():
            images = x.detach().requires_grad_()
            (found,) = torch.autograd.grad(function(images), images, allow_unused=True)
        return torch.zeros_like(x) if found is None else found
    import tensorflow as tf

    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(x)
        value = function(x)
    return tape.gradient(value, x, unconnected_gradients=tf.UnconnectedGradients.ZERO)
