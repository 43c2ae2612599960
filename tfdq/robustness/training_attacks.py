"""The attacks of adversarial training, and what may be asked of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tfdq.robustness.attacks.ranges import Extent, as_clip, as_extent, as_json, largest, shown

TRAINING_ATTACKS = ("r+fgsm", "fgsm", "pgd", "n-fgsm", "free")
OBJECTIVES = ("adversarial", "trades", "mart")
# What the trainer of tf_keras models takes.
TF_KERAS_ATTACKS = ("r+fgsm", "fgsm", "pgd")
# The weight of the term that the objective adds: the papers' own.
_TRADE_OFFS = {"trades": 6.0, "mart": 5.0}
_MIXED_RATIO = 0.5
# Attacks whose step is the radius by default.
_LONG_STEPS = ("n-fgsm", "free")


class AttackSettings:
    """What the trainers of both Keras know of their attack, as attributes.

    Attributes:
        attack: One of `TRAINING_ATTACKS`.
        eps: Radius in input units.
        ratio: Share of each batch that is perturbed.
        clip: `(lo, hi)` of valid inputs.
        steps: Steps of `"pgd"`, or passes of `"free"` over each batch.
        step_size: Step of `"pgd"`, `"n-fgsm"` and `"free"` in input units.
        seed: Seed of the random starts.
        objective: One of `OBJECTIVES`.
        trade_off: Weight of what `"trades"` or `"mart"` adds to the loss; None for
            `"adversarial"`.
        warmup_steps: Training steps over which the radius grows from 0.
        catastrophic_overfitting: Epochs (from 0) at which it was seen; empty if it never was.
        gradient_masking: Whether a random search was stronger than PGD at the end of training;
            None if it was not asked.
    """

    def set_attack(
        self,
        attack: str,
        eps: Any,
        ratio: float | None,
        clip: Sequence[Any],
        steps: int,
        step_size: Any,
        seed: int,
        objective: str = "adversarial",
        trade_off: float | None = None,
        warmup_steps: int = 0,
    ) -> None:
        """Set what is attacked with; see the class.

        Raises:
            ValueError: If an argument is out of range, or two do not go together.
        """
        if objective not in OBJECTIVES:
            raise ValueError(f"objective must be one of {OBJECTIVES}, got {objective!r}")
        if ratio is None:
            mixed = objective == "adversarial" and attack != "free"
            ratio = _MIXED_RATIO if mixed else 1.0
        self.eps, self.clip = checked_settings(attack, eps, ratio, clip, steps, step_size)
        _check_together(attack, objective, ratio, trade_off)
        if int(warmup_steps) != warmup_steps or warmup_steps < 0:
            raise ValueError(
                f"warmup_steps must be a whole number of training steps, at least 0; got "
                f"{warmup_steps}"
            )
        self.attack = attack
        self.ratio = float(ratio)
        self.steps = int(steps)
        if step_size is not None:
            self.step_size = as_extent(step_size, "step_size")
        else:
            self.step_size = self.eps * (2.5 / self.steps if attack not in _LONG_STEPS else 1.0)
        self.seed = int(seed)
        self.objective = objective
        trade_off = _TRADE_OFFS.get(objective) if trade_off is None else float(trade_off)
        self.trade_off = trade_off
        self.warmup_steps = int(warmup_steps)
        self.catastrophic_overfitting: tuple[int, ...] = ()
        self.gradient_masking: bool | None = None

    def attack_config(self) -> dict[str, Any]:
        """Return the arguments of `set_attack`, JSON-ready."""
        return {
            "attack": self.attack,
            "eps": as_json(self.eps),
            "ratio": self.ratio,
            "clip": [as_json(end) for end in self.clip],
            "steps": self.steps,
            "step_size": as_json(self.step_size),
            "seed": self.seed,
            "objective": self.objective,
            "trade_off": self.trade_off,
            "warmup_steps": self.warmup_steps,
        }


def _check_together(attack: str, objective: str, ratio: float, trade_off: float | None) -> None:
    """Raise a ValueError that names two settings which do not go together."""
    if objective == "adversarial":
        if trade_off is not None:
            raise ValueError(
                f"trade_off is the weight of what objective='trades' or 'mart' adds; got "
                f"{trade_off} with objective='adversarial'"
            )
    elif attack == "free":
        raise ValueError(
            f"attack='free' descends the loss that it ascends: objective={objective!r} takes "
            "'pgd', 'r+fgsm' or 'n-fgsm'"
        )
    elif objective == "trades" and attack == "fgsm":
        raise ValueError(
            "objective='trades' ascends the distance from the clean outputs, whose gradient at the "
            "clean image is 0: attack='fgsm' would not move; take 'pgd', 'r+fgsm' or 'n-fgsm'"
        )
    if trade_off is not None and not 0 < trade_off < float("inf"):
        raise ValueError(f"trade_off must be positive, got {trade_off}")
    if ratio != 1 and (objective != "adversarial" or attack == "free"):
        raise ValueError(
            f"{objective if attack != 'free' else attack!r} perturbs the whole batch: leave ratio "
            f"out, got {ratio}"
        )


def checked_settings(
    attack: str, eps: Any, ratio: float, clip: Sequence[Any], steps: int, step_size: Any
) -> tuple[Extent, tuple[Extent, Extent]]:
    """Return radius and range, or raise a ValueError that names what is out of range."""
    if attack not in TRAINING_ATTACKS:
        raise ValueError(f"attack must be one of {TRAINING_ATTACKS}, got {attack!r}")
    limits = as_clip(clip)
    width = np.subtract(limits[1], limits[0])
    radius = as_extent(eps, "eps")
    if np.min(radius) < 0 or largest(radius) == 0 or np.any(radius > width):
        raise ValueError(
            f"eps is in input units and must lie in (0, {largest(width):g}] for inputs in "
            f"({shown(limits[0])}, {shown(limits[1])}), e.g. 8/255 of the range; got "
            f"{shown(radius)}"
        )
    if not 0 < ratio <= 1:
        raise ValueError(
            f"ratio is the share of the batch that is attacked, in (0, 1]; got {ratio}"
        )
    if int(steps) != steps or steps < 1:
        raise ValueError(f"steps must be a whole number, at least 1; got {steps}")
    if step_size is not None and not np.min(as_extent(step_size, "step_size")) > 0:
        raise ValueError(f"step_size must be positive, got {step_size}")
    return radius, limits
