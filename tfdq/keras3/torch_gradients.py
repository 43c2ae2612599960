"""Values and gradients of a Keras 3 function on PyTorch, from and to NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from keras import ops


class TorchGradients:
    """A function of images, computed eagerly on the device that Keras uses.

    Args:
        function: from a batch of images to a tensor with one row for each.
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    def values(self, x: np.ndarray) -> np.ndarray:
        """Return the function's values for float32 images, float32 ``(n, ...)``."""
        with torch.no_grad():
            found = self._function(ops.convert_to_tensor(x))
        return np.asarray(ops.convert_to_numpy(found), np.float32)

    def gradient(self, x: np.ndarray, cotangents: np.ndarray) -> np.ndarray:
        """Return the gradient of the sum of the values times ``cotangents``, like the images."""
        images = ops.convert_to_tensor(x).requires_grad_()
        values = self._function(images)
        (found,) = torch.autograd.grad(
            values, images, ops.convert_to_tensor(cotangents), allow_unused=True
        )
        if found is None:
            return np.zeros_like(x)
        return np.asarray(ops.convert_to_numpy(found), np.float32)
