"""The attacks of adversarial training, and what may be asked of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tfdq.robustness.attacks.ranges import Extent, as_clip, as_extent, as_json, largest, shown

TRAINING_ATTACKS = ("r+fgsm", "fgsm", "pgd")


class AttackSettings:
    """What the trainers of both Keras know of their attack, as attributes.

    Attributes:
        attack: One of `TRAINING_ATTACKS`.
        eps: Radius in input units.
        ratio: Share of each batch that is perturbed.
        clip: `(lo, hi)` of valid inputs.
        steps: Steps of `"pgd"`.
        step_size: Step of `"pgd"` in input units.
        seed: Seed of the random starts.
        catastrophic_overfitting: Epochs (from 0) at which it was seen; empty if it never was.
        gradient_masking: Whether a random search was stronger than PGD at the end of training;
            None if it was not asked.
    """

    def set_attack(
        self,
        attack: str,
        eps: Any,
        ratio: float,
        clip: Sequence[Any],
        steps: int,
        step_size: Any,
        seed: int,
    ) -> None:
        """Set what is attacked with; see the class.

        Raises:
            ValueError: If an argument is out of range.
        """
        self.eps, self.clip = checked_settings(attack, eps, ratio, clip, steps, step_size)
        self.attack = attack
        self.ratio = float(ratio)
        self.steps = int(steps)
        self.step_size = (
            2.5 * self.eps / self.steps if step_size is None else as_extent(step_size, "step_size")
        )
        self.seed = int(seed)
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
        }


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
