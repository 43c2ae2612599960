"""What attacks ask of a function on any backend."""

from __future__ import annotations

from collections.abc import Callable
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
