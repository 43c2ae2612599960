"""Values and gradients of a function on JAX, from and to NumPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import keras
import numpy as np

from tfdq.robustness.gradients.interface import LossFunction


class JaxGradients:
    """A function of images that reads the variables of a model, compiled; see `Gradients`.

    Batches are filled up to a power of two, since JAX compiles anew for each size.

    Args:
        function: From a batch of images to a tensor with one row for each.
        differentiated: What gradients are taken of.
        variables: What they read; their values may change from call to call.
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        differentiated: Callable[[Any], Any],
        variables: Sequence[Any],
    ) -> None:
        self._variables = list(variables)
        self._losses: dict[LossFunction, Callable[..., Any]] = {}
        self._differentiated = differentiated

        def pull_back(values: list[Any], x: Any, cotangents: Any) -> Any:
            found, back = jax.vjp(lambda images: self._run(differentiated, values, images), x)
            return found, back(cotangents.astype(found.dtype))[0]

        self._values = jax.jit(lambda values, x: self._run(function, values, x))
        self._pull_back = jax.jit(pull_back)

    def values(self, x: np.ndarray) -> np.ndarray:
        """Return the function's values for float32 images, float32 `(n, ...)`."""
        return _rows(self._values(self._present(), _filled_up(x)), len(x))

    def pull_back(self, x: np.ndarray, cotangents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return values and the gradient of their weighted sum; see `Gradients`."""
        values, gradient = self._pull_back(self._present(), _filled_up(x), _filled_up(cotangents))
        return _rows(values, len(x)), _rows(gradient, len(x))

    def loss_gradient(
        self, loss: LossFunction, x: np.ndarray, y: np.ndarray, aux: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return logits, losses and their gradients; see `Gradients`."""
        if loss not in self._losses:
            self._losses[loss] = self._compiled(loss)
        logits, losses, gradient = self._losses[loss](
            self._present(), _filled_up(x), _filled_up(y), _filled_up(aux)
        )
        return _rows(logits, len(x)), _rows(losses, len(x)), _rows(gradient, len(x))

    def _compiled(self, loss: LossFunction) -> Callable[..., Any]:
        def run(values: list[Any], x: Any, y: Any, aux: Any) -> tuple[Any, Any, Any]:
            def total(images: Any) -> tuple[Any, tuple[Any, Any]]:
                logits = self._run(self._differentiated, values, images)
                losses = loss(logits, y, aux)
                return losses.sum(), (logits, losses)

            (_, (logits, losses)), gradient = jax.value_and_grad(total, has_aux=True)(x)
            return logits, losses, gradient

        return jax.jit(run)

    def _run(self, function: Callable[[Any], Any], values: list[Any], x: Any) -> Any:
        mapping = list(zip(self._variables, values, strict=True))
        with keras.StatelessScope(state_mapping=mapping):
            return function(x)

    def _present(self) -> list[Any]:
        return [variable.value for variable in self._variables]


def _rows(batch: Any, count: int) -> np.ndarray:
    return np.asarray(batch, np.float32)[:count]


def _filled_up(batch: np.ndarray) -> np.ndarray:
    """Return a batch with rows of zeros behind it, up to a power of two."""
    missing = (1 << max(len(batch) - 1, 0).bit_length()) - len(batch)
    return np.pad(batch, [(0, missing)] + [(0, 0)] * (batch.ndim - 1))
