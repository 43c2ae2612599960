"""Settings of interval training, of either Keras."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

from tfdq.penalties.schedules import Schedule

Nominal = Literal["clean", "attacked"]


class IntervalSettings:
    """What interval training was given, checked.

    Args:
        eps: radius of the ball in input units, or its schedule.
        kappa: share of the nominal loss in [0, 1], or its schedule.
        bounds: smallest and largest valid input.
        box: radius of the bounded box as a share of ``eps``, in (0, 1].
        nominal: ``"clean"`` or ``"attacked"``.
        attack_steps: steps of PGD, >= 1.

    Raises:
        ValueError: a value is out of its range.
    """

    def __init__(
        self,
        eps: float | Schedule,
        kappa: float | Schedule,
        bounds: tuple[float, float],
        box: float,
        nominal: Nominal,
        attack_steps: int,
    ) -> None:
        if not 0 < box <= 1:
            raise ValueError(f"box must be a share of eps in (0, 1], got {box}")
        if nominal not in get_args(Nominal):
            raise ValueError(f"nominal must be 'clean' or 'attacked', got {nominal!r}")
        if attack_steps < 1:
            raise ValueError(f"attack_steps must be >= 1, got {attack_steps}")
        if not (math.isfinite(bounds[0]) and bounds[0] < bounds[1]):
            raise ValueError(f"bounds must be (low, high) with low < high, got {bounds}")
        self.bounds = (float(bounds[0]), float(bounds[1]))
        self.box = float(box)
        self.nominal = nominal
        self.attack_steps = int(attack_steps)
        self._eps, self._kappa = _as_schedule(eps), _as_schedule(kappa)

    @property
    def attacks(self) -> bool:
        """Whether adversarial examples have a use."""
        return self.box < 1.0 or self.nominal == "attacked"

    def at(self, epochs: float) -> tuple[float, float]:
        """Return eps and kappa after a number of epochs.

        Raises:
            ValueError: a schedule gives a value out of its range.
        """
        eps, kappa = float(self._eps(epochs)), float(self._kappa(epochs))
        if not 0 <= eps < math.inf or not 0 <= kappa <= 1:
            raise ValueError(
                f"eps must be >= 0 and kappa in [0, 1], got {eps} and {kappa} after {epochs} epochs"
            )
        return eps, kappa


class Clock:
    """Tell the model of interval training how many epochs have passed; of Keras' callbacks."""

    model: Any
    params: dict[str, Any]
    _epoch = 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Note the epoch."""
        self._epoch = epoch
        self.model.set_time(float(epoch))

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Set the schedules to the fraction of the epoch that has passed."""
        steps = self.params.get("steps")
        if steps:
            self.model.set_time(self._epoch + batch / steps)


def check_loss(loss: Any) -> None:
    """Check that there is one loss to train with.

    Raises:
        ValueError: there is none, or several.
    """
    if loss is None or isinstance(loss, (list, tuple, dict)):
        raise ValueError(
            f"IntervalTraining needs a loss, one cross-entropy for labels and logits, got {loss!r}"
        )


def _as_schedule(value: float | Schedule) -> Schedule:
    if callable(value):
        return value
    constant = float(value)
    return lambda time: constant
