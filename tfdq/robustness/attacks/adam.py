"""Adam (Kingma & Ba 2015) on a batch of independent images, some of which may drop out."""

from __future__ import annotations

import numpy as np

from tfdq.robustness.attacks.projections import per_image
from tfdq.robustness.attacks.ranges import Extent

_FIRST, _SECOND, _SMALL = 0.9, 0.999, 1e-8


class Adam:
    """The optimizer's state for each image.

    Args:
        shape: Of the images, [n, ...].
        learning_rate: Largest step, about; one number, or one for each channel.
    """

    def __init__(self, shape: tuple[int, ...], learning_rate: Extent) -> None:
        self.learning_rate = learning_rate
        self._mean = np.zeros(shape, np.float32)
        self._square = np.zeros(shape, np.float32)
        self._count = np.zeros(shape[0], np.int64)

    def step(self, gradient: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The update to subtract from the images `rows`, given their gradients."""
        self._count[rows] += 1
        mean = self._mean[rows] = _FIRST * self._mean[rows] + (1 - _FIRST) * gradient
        square = self._square[rows] = (
            _SECOND * self._square[rows] + (1 - _SECOND) * gradient * gradient
        )
        count = per_image(self._count[rows], gradient)
        mean = mean / (1 - _FIRST**count)
        square = square / (1 - _SECOND**count)
        return (self.learning_rate * mean / (np.sqrt(square) + _SMALL)).astype(np.float32)

    def reset(self) -> None:
        """Forgets everything."""
        self._mean[:] = 0
        self._square[:] = 0
        self._count[:] = 0
