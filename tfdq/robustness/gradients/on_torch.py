"""Values and gradients of a function on PyTorch, from and to NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from keras import ops

from tfdq.robustness.gradients.interface import LossFunction


class TorchGradients:
    """A function of images, computed eagerly on the device that Keras uses; see `Gradients`.

    Args:
        function: From a batch of images to a tensor with one row for each.
        differentiated: What gradients are taken of.
    """

    def __init__(
        self, function: Callable[[Any], Any], differentiated: Callable[[Any], Any]
    ) -> None:
        self._function = function
        self._differentiated = differentiated

    def values(self, x: np.ndarray) -> np.ndarray:
        """Return the function's values for float32 images, float32 `(n, ...)`."""
        with torch.no_grad():
            return _as_array(self._function(ops.convert_to_tensor(x)))

    def pull_back(self, x: np.ndarray, cotangents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return values and the gradient of their weighted sum; see `Gradients`."""
        with torch.enable_grad():
            images = ops.convert_to_tensor(x).requires_grad_()
            values = self._differentiated(images)
        upstream = ops.cast(ops.convert_to_tensor(cotangents), values.dtype)
        return _as_array(values), _gradient(values, images, upstream)

    def loss_gradient(
        self, loss: LossFunction, x: np.ndarray, y: np.ndarray, aux: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return logits, losses and their gradients; see `Gradients`."""
        with torch.enable_grad():
            images = ops.convert_to_tensor(x).requires_grad_()
            logits = self._differentiated(images)
            losses = loss(logits, ops.convert_to_tensor(y), ops.convert_to_tensor(aux))
        gradient = _gradient(losses, images, torch.ones_like(losses))
        return _as_array(logits), _as_array(losses), gradient


def _gradient(values: Any, images: Any, upstream: Any) -> np.ndarray:
    found = None
    if values.requires_grad:
        (found,) = torch.autograd.grad(values, images, upstream, allow_unused=True)
    return _as_array(torch.zeros_like(images) if found is None else found)


def _as_array(tensor: Any) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(tensor), np.float32)
