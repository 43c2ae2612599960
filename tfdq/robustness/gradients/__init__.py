"""Values and gradients of a function on Keras' backend, from and to NumPy: what attacks ask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

LossFunction = Callable[[Any, Any, Any], Any]
"""`loss(logits, labels, aux)` -> (n,), on tensors of Keras' backend."""


class Gradients(Protocol):
    """A function of a batch of float32 images, with one row of its result for each."""

    def values(self, x: np.ndarray) -> np.ndarray:
        """Return the function's values, float32 `(n, ...)`."""

    def pull_back(self, x: np.ndarray, cotangents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the values, and the gradient of their sum weighted with `cotangents`.

        Args:
            x: Images, float32 `(n, ...)`.
            cotangents: The weights, float32, in the shape of the values.
        """

    def loss_gradient(
        self, loss: LossFunction, x: np.ndarray, y: np.ndarray, aux: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return logits, the loss of each image, and the gradient of each by its image.

        Args:
            loss: One compilation for each function object.
            x: Images, float32 `(n, ...)`.
            y: Labels, int32 `(n,)`.
            aux: A number for each image, float32 `(n,)`.
        """


def gradients_of(
    function: Callable[[Any], Any],
    *,
    differentiated: Callable[[Any], Any] | None = None,
    variables: Sequence[Any] = (),
) -> Gradients:
    """Return the values and gradients of a function on the backend that Keras runs on.

    Args:
        function: From a batch of images to a tensor with one row for each.
        differentiated: What gradients are taken of, and the logits given beside them; by default
            `function` itself.
        variables: The Keras variables that are read; on JAX the value of any other is kept as it
            is at the first call.
    """
    from tfdq.keras3.backends import check_backend

    differentiated = differentiated or function
    backend = check_backend()
    if backend == "jax":
        from tfdq.robustness.gradients.on_jax import JaxGradients

        return JaxGradients(function, differentiated, variables)
    if backend == "torch":
        from tfdq.robustness.gradients.on_torch import TorchGradients

        return TorchGradients(function, differentiated)
    from tfdq.robustness.gradients.on_tensorflow import TensorflowGradients

    return TensorflowGradients(function, differentiated)
