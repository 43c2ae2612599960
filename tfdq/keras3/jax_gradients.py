"""Values and gradients of a Keras 3 function on JAX, from and to NumPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import keras
import numpy as np


class JaxGradients:
    """A function of images that reads the variables of a model, compiled.

    Batches are filled up to a power of two, since JAX compiles anew for each size.

    Args:
        function: from a batch of images to a tensor with one row for each.
        variables: what it reads; their values may change from call to call.
    """

    def __init__(self, function: Callable[[Any], Any], variables: Sequence[Any]) -> None:
        self._variables = list(variables)

        def run(values: list[Any], x: Any) -> Any:
            with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
                return function(x)

        def pull_back(values: list[Any], x: Any, cotangents: Any) -> Any:
            return jax.vjp(lambda images: run(values, images), x)[1](cotangents)[0]

        self._run, self._pull_back = jax.jit(run), jax.jit(pull_back)

    def values(self, x: np.ndarray) -> np.ndarray:
        """Return the function's values for float32 images, float32 ``(n, ...)``."""
        found = self._run(self._present(), _filled_up(x))
        return np.asarray(found, np.float32)[: len(x)]

    def gradient(self, x: np.ndarray, cotangents: np.ndarray) -> np.ndarray:
        """Return the gradient of the sum of the values times ``cotangents``, like the images."""
        found = self._pull_back(self._present(), _filled_up(x), _filled_up(cotangents))
        return np.asarray(found, np.float32)[: len(x)]

    def _present(self) -> list[Any]:
        return [variable.value for variable in self._variables]


def _filled_up(batch: np.ndarray) -> np.ndarray:
    """Return a batch with rows of zeros behind it, up to a power of two."""
    missing = (1 << max(len(batch) - 1, 0).bit_length()) - len(batch)
    return np.pad(batch, [(0, missing)] + [(0, 0)] * (batch.ndim - 1))
