"""Optimizers and schedules of the learning rate, of either Keras."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from tfdq.experiments.settings import TrainingSettings

STEP_FACTOR = 0.2
STEP_PLACES = (0.3, 0.6, 0.8)
"""Where the learning rate of the schedule "steps" falls, and by what factor.

Source: Zagoruyko and Komodakis, *Wide Residual Networks*, 2016, section 3.
"""


class Schedules(NamedTuple):
    """The schedules that neither Keras has, for one of them.

    Attributes:
        warm_up: makes the schedule that rises to another one, in a number of steps.
        one_cycle: makes the schedule that rises to a rate and falls to 0, in a number of steps.
    """

    warm_up: Callable[[Any, int], Any]
    one_cycle: Callable[[float, int], Any]


def updates_per_batch(fitted: Any) -> int:
    """Return how often the optimizer updates the weights on each batch.

    Args:
        fitted: the model, or the trainer around one.
    """
    return int(fitted.steps) if getattr(fitted, "attack", None) == "free" else 1


def make_optimizer(core: Any, own: Schedules, settings: TrainingSettings, steps: int) -> Any:
    """Return the optimizer of a training.

    Args:
        core: ``keras`` or ``tf_keras``.
        own: schedules for it.
        settings: how to train.
        steps: updates of the weights in an epoch; see `updates_per_batch`.
    """
    total = steps * settings.epochs
    rate: Any = settings.learning_rate
    if settings.schedule == "cosine":
        rate = core.optimizers.schedules.CosineDecay(settings.learning_rate, total)
    elif settings.schedule == "steps":
        places = [round(place * total) for place in STEP_PLACES]
        values = [settings.learning_rate * STEP_FACTOR**n for n in range(len(places) + 1)]
        rate = core.optimizers.schedules.PiecewiseConstantDecay(places, values)
    elif settings.schedule == "one-cycle":
        rate = own.one_cycle(settings.learning_rate, total)
    if settings.warmup_epochs > 0:
        rate = own.warm_up(rate, max(1, round(settings.warmup_epochs * steps)))
    options: dict[str, Any] = {"weight_decay": settings.weight_decay or None}
    if settings.average:
        options |= {"use_ema": True, "ema_momentum": settings.average}
    if settings.optimizer == "sgd":
        nesterov = settings.momentum > 0
        return core.optimizers.SGD(rate, momentum=settings.momentum, nesterov=nesterov, **options)
    return core.optimizers.Adam(rate, **options)
