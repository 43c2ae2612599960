"""The attacks of adversarial training, and what may be asked of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tfdq.robustness.attacks.ranges import Extent, as_clip, as_extent, largest, shown

TRAINING_ATTACKS = ("r+fgsm", "fgsm", "pgd")


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
