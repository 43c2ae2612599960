"""SPSA (Uesato et al. 2018): gradients estimated from scores, for many images at once.

CleverHans' takes a batch of one image, a fresh optimizer and a traced graph for each; the estimate
and the Adam update here are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tfdq.robustness.attacks.adam import Adam
from tfdq.robustness.attacks.base import AttackTask
from tfdq.robustness.attacks.ranges import Extent
from tfdq.robustness.attacks.registry import AttackCost, register_attack
from tfdq.robustness.attacks.square import margin_of


def _cost(options: Mapping[str, Any], classes: int) -> AttackCost:
    return AttackCost(0, options["steps"] * (options["samples"] + 1))


@register_attack("spsa", gradients=False, cost=_cost, title="SPSA")
def spsa(
    task: AttackTask,
    *,
    steps: int = 40,
    samples: int = 128,
    delta: float = 0.01,
    learning_rate: float = 0.01,
) -> np.ndarray:
    """Adam on a margin loss whose gradient is estimated from paired random perturbations.

    One estimate draws samples / 2 sign vectors v and averages
    (f(x + delta v) - f(x - delta v)) / (2 delta) * v. Defaults are CleverHans', with
    `learning_rate` and `delta` in units of the clip range. An image costs steps * (samples + 1)
    queries at most.

    Args:
        task: The batch.
        steps: Updates.
        samples: Queries per estimate, even.
        delta: Size of the random perturbations, as a share of the clip range.
        learning_rate: Of Adam, as a share of the clip range.

    Returns:
        The last images.

    Raises:
        ValueError: `steps` below 1, `samples` odd or below 2, a size that is not positive.
    """
    if steps < 1 or samples < 2 or samples % 2:
        raise ValueError(f"need steps >= 1 and an even samples >= 2, got {steps} and {samples}")
    if delta <= 0 or learning_rate <= 0:
        raise ValueError(f"delta and learning_rate must be > 0, got {delta} and {learning_rate}")
    span = task.clip[1] - task.clip[0]
    noise = task.rng.uniform(-task.eps, task.eps, task.x.shape)
    x_adv = task.project(task.x + noise.astype(np.float32))
    adam = Adam(task.x.shape, learning_rate * span)
    for _ in range(steps):
        rows = task.active()
        if len(rows) == 0:
            return x_adv
        slope = estimate_margin_gradient(task, x_adv[rows], rows, samples, delta * span)
        x_adv[rows] = task.project(x_adv[rows] - adam.step(slope, rows), rows)
        if task.early_stop:
            task.logits(x_adv[rows], rows)
    return x_adv


def estimate_margin_gradient(
    task: AttackTask, x: np.ndarray, rows: np.ndarray, samples: int, delta: Extent
) -> np.ndarray:
    """The SPSA estimate of the gradient of z_y - max_{i != y} z_i at `x`, like `x`.

    Images are queried in groups, so that memory holds about a batch of perturbed images at a time.
    """
    half = samples // 2
    group = max(1, task.target.batch_size // samples)
    slope = np.empty_like(x)
    for start in range(0, len(x), group):
        part = slice(start, start + group)
        images, owners = x[part], rows[part]
        signs = np.sign(task.rng.random((len(images), half, *x.shape[1:]), dtype=np.float32) - 0.5)
        pair = np.concatenate([signs, -signs], axis=1)
        points = images[:, np.newaxis] + np.float32(delta) * pair
        logits = task.target.logits(points.reshape(-1, *x.shape[1:]))
        task.queries[owners] += samples
        margins = margin_of(logits, np.repeat(task.y[owners], samples))
        weights = margins.reshape(len(images), samples, *[1] * (x.ndim - 1))
        slope[part] = (weights * pair).mean(axis=1) / np.float32(delta)
    return slope
