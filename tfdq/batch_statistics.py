"""The mean and the variance over all batches, from those of each batch."""

from __future__ import annotations

import numpy as np


class PooledStatistics:
    r"""Means and variances of batches, pooled.

    .. math:: \mu = \sum_b p_b \mu_b, \qquad
        \sigma^2 = \sum_b p_b (\sigma_b^2 + \mu_b^2) - \mu^2

    with ``p_b`` the share of the images that batch ``b`` has.

    Source: Wu and Johnson, *Rethinking "Batch" in BatchNorm*, arXiv 2105.07576, section 3.
    """

    def __init__(self) -> None:
        self._counts: list[int] = []
        self._means: list[np.ndarray] = []
        self._squares: list[np.ndarray] = []

    def take(self, count: int, mean: np.ndarray, variance: np.ndarray) -> None:
        """Add a batch.

        Args:
            count: number of its images.
            mean: of each channel, ``(channels,)``.
            variance: likewise.
        """
        means = np.asarray(mean, np.float64)
        self._counts.append(count)
        self._means.append(means)
        self._squares.append(np.asarray(variance, np.float64) + np.square(means))

    def pooled(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and variance over all images, float32 ``(channels,)``."""
        mean = np.average(self._means, axis=0, weights=self._counts)
        variance = np.average(self._squares, axis=0, weights=self._counts) - np.square(mean)
        return mean.astype(np.float32), np.maximum(variance, 0.0).astype(np.float32)
