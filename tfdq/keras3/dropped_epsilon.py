"""What normalizing layers lose with the ``epsilon`` that integer kernels do not add."""

from __future__ import annotations

import warnings
from contextvars import ContextVar

import numpy as np

from tfdq.lagging_statistics import frames_inside

_NOTICED = 0.05
"""A share of the result, about what rounding to int8 costs it."""


class DroppedEpsilon:
    r"""The ``epsilon`` of one layer beside the variances of the vectors that it normalizes.

    The float layer gives :math:`x / \sqrt{v + \epsilon}` for a vector of variance :math:`v`, the
    integer one :math:`x / \sqrt{v}`; the share of the latter that is too much is
    :math:`1 - \sqrt{v / (v + \epsilon)}`.

    Args:
        name: of the float layer.
        epsilon: above 0.
    """

    def __init__(self, name: str, epsilon: float) -> None:
        self.name = name
        self.epsilon = epsilon
        self._count = 0
        self._variance = self._excess = 0.0

    def take(self, variances: np.ndarray) -> None:
        """Add the variances of a batch of vectors, mean squares >= 0 of any shape."""
        found = np.asarray(variances, np.float64)
        # a vector of zeros stays one, with epsilon and without
        moved = found[found > 0.0]
        self._count += moved.size
        self._variance += float(moved.sum())
        self._excess += float((1.0 - np.sqrt(moved / (moved + self.epsilon))).sum())

    @property
    def variance(self) -> float:
        """The mean variance of the vectors that are not zero."""
        return self._variance / max(self._count, 1)

    @property
    def excess(self) -> float:
        """The mean share, 0 to 1, by which the results of these vectors are too large."""
        return self._excess / max(self._count, 1)


Dropped = dict[str, DroppedEpsilon]
dropped: ContextVar[Dropped | None] = ContextVar("dropped", default=None)
"""Where layers that drop an epsilon take their variances to, by their names; None: nowhere."""


def warn_of_dropped_epsilons(found: Dropped) -> None:
    """Warn once of all layers whose epsilon is no small number beside the variances.

    The warning points at the line that called the library.

    Args:
        found: what a pass over images took; may be empty.
    """
    lost = [entry for entry in found.values() if entry.excess > _NOTICED]
    if not lost:
        return
    each = "; ".join(
        f"{entry.name!r} (epsilon {entry.epsilon:g}, variance {entry.variance:.2g}, results "
        f"{100 * entry.excess:.0f} % too large on average)"
        for entry in lost
    )
    warnings.warn(
        "integer kernels normalize without epsilon, which matters beside the variances that these "
        f"layers are given: {each}. Train the quantized model on, which computes without it too; "
        "or train the float model with a smaller epsilon first, as epsilon=1e-6",
        UserWarning,
        stacklevel=frames_inside() + 1,
    )
