"""Auto-PGD (Croce & Hein 2020): APGD-CE, APGD-DLR and APGD-T, with AutoAttack's settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tfdq.robustness.attacks.base import AttackTask
from tfdq.robustness.attacks.losses import (
    cross_entropy,
    difference_of_logits_ratio,
    targeted_dlr,
)
from tfdq.robustness.attacks.projections import l2_norm, linf_norm, per_image
from tfdq.robustness.attacks.registry import AttackCost, register_attack
from tfdq.robustness.gradients.interface import LossFunction


def _cost(options: Mapping[str, Any], classes: int) -> AttackCost:
    runs = min(options.get("target_classes", 1), classes - 1) * options["restarts"]
    return AttackCost(runs * (options["steps"] + 1), 0)


@register_attack(
    "apgd-ce",
    gradients=True,
    norms=("linf", "l2"),
    cost=_cost,
    title="APGD-CE",
    suites={"standard": 10, "record": 10, "quick": 10},
)
def apgd_ce(
    task: AttackTask, *, steps: int = 100, restarts: int = 1, rho: float = 0.75
) -> np.ndarray:
    """APGD on the cross-entropy; AutoAttack's standard version runs it once.

    Args:
        task: The batch.
        steps: Gradient steps per restart (one gradient more for the starting point).
        restarts: Runs from new random points.
        rho: Share of steps that must have raised the loss for the step size to be kept.

    Returns:
        The image of highest loss for each example.
    """
    return _restarts(task, cross_entropy, steps, restarts, rho)


@register_attack(
    "apgd-dlr",
    gradients=True,
    norms=("linf", "l2"),
    least_classes=3,
    cost=_cost,
    title="APGD-DLR",
)
def apgd_dlr(
    task: AttackTask, *, steps: int = 100, restarts: int = 1, rho: float = 0.75
) -> np.ndarray:
    """APGD on the difference of logits ratio; needs three classes. Arguments as `apgd_ce`."""
    return _restarts(task, difference_of_logits_ratio, steps, restarts, rho)


@register_attack(
    "apgd-t",
    gradients=True,
    norms=("linf", "l2"),
    least_classes=4,
    cost=_cost,
    title="APGD-T",
    suites={"standard": 30, "record": 30, "quick": 30},
    settings={"target_classes": "target_classes"},
)
def apgd_targeted(
    task: AttackTask,
    *,
    steps: int = 100,
    restarts: int = 1,
    rho: float = 0.75,
    target_classes: int = 9,
) -> np.ndarray:
    """APGD on the targeted DLR loss, one run for each of the most likely wrong classes.

    Args:
        task: The batch; at least four classes.
        steps: Gradient steps per target and restart.
        restarts: Runs per target.
        rho: As in `apgd_ce`.
        target_classes: How many classes to aim at, most likely first; all wrong ones if there are
            fewer.

    Returns:
        For each example not broken, the image of highest loss of its last run.
    """
    _check(steps, restarts, rho)
    best = task.x.copy()
    for _ in range(restarts):
        for rows, aims in task.targeted_batches(target_classes):
            best[rows] = run_apgd(task, rows, targeted_dlr, aims, steps=steps, rho=rho)[0]
    return best


def _restarts(
    task: AttackTask, loss: LossFunction, steps: int, restarts: int, rho: float
) -> np.ndarray:
    _check(steps, restarts, rho)
    best = task.x.copy()
    best_loss = np.full(len(task.x), -np.inf, np.float32)
    for _ in range(restarts):
        rows = task.active()
        if len(rows) == 0:
            break
        images, losses = run_apgd(task, rows, loss, None, steps=steps, rho=rho)
        better = losses > best_loss[rows]
        best[rows[better]] = images[better]
        best_loss[rows[better]] = losses[better]
    return best


def run_apgd(
    task: AttackTask,
    rows: np.ndarray,
    loss: LossFunction,
    aux: np.ndarray | None,
    *,
    steps: int,
    rho: float = 0.75,
    start: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """One run of Auto-PGD (Croce & Hein 2020, algorithm 1) on some of the task's examples.

    Steps of 2 eps with a momentum of 0.25, halved at checkpoints (after 0.22 of the steps, then at
    intervals shorter by 0.03 each, at least 0.06) where too few steps raised the loss or the best
    loss stood still; the run then goes on from the best point. An example that breaks is dropped
    from the batch at once.

    Args:
        task: The batch.
        rows: The examples to attack; one may appear several times, with different `aux`.
        loss: What to climb.
        aux: For the loss, one number for each of `rows`.
        steps: Gradient steps; one gradient more is spent on the starting point.
        rho: Share of the steps that must raise the loss for the step size to be kept.
        start: Images to start from, like `task.x[rows]`; a random point of the ball by default.

    Returns:
        The images of highest loss, float32 [len(rows), ...], and those losses.
    """
    x = task.x[rows]
    if start is None:
        start = x + task.eps * _random_direction(task, x)
    x_adv = task.project(start, rows)
    m = len(rows)
    aux = np.zeros(m, np.float32) if aux is None else aux
    _, losses, gradient = task.loss_gradient(loss, x_adv, rows, aux)
    best, best_loss, best_gradient = x_adv.copy(), losses.copy(), gradient.copy()
    # The reference compares the first loss with an untouched entry of its history, which is 0.
    last_loss = np.zeros(m, np.float32)
    raised = np.zeros(m, np.int64)
    loss_at_check = best_loss.copy()
    halved_at_check = np.ones(m, bool)
    share_of_radius = np.full(m, 2.0)
    previous = x_adv.copy()
    interval, since_check = max(int(0.22 * steps), 1), 0
    shortest, decrement = max(int(0.06 * steps), 1), max(int(0.03 * steps), 1)
    for step in range(steps):
        live = _live(task, rows)
        if len(live) == 0:
            break
        current = x_adv[live]
        momentum = current - previous[live]
        previous[live] = current
        scale = (per_image(share_of_radius[live], x) * task.eps).astype(np.float32)
        forward = task.project(current + scale * _ascent(gradient[live], task.norm), rows[live])
        share = np.float32(0.75 if step else 1.0)
        moved = current + (forward - current) * share + momentum * (1 - share)
        moved = task.project(moved, rows[live])
        x_adv[live] = moved
        _, losses, gradient[live] = task.loss_gradient(loss, moved, rows[live], aux[live])
        raised[live] += losses > last_loss[live]
        last_loss[live] = losses
        better = losses > best_loss[live]
        improved = live[better]
        best[improved], best_loss[improved] = moved[better], losses[better]
        best_gradient[improved] = gradient[improved]
        since_check += 1
        if since_check == interval:
            stuck = ~halved_at_check & (loss_at_check >= best_loss)
            halve = (raised <= interval * rho) | stuck
            halved_at_check, loss_at_check = halve, best_loss.copy()
            share_of_radius[halve] /= 2
            x_adv[halve], gradient[halve] = best[halve], best_gradient[halve]
            raised[:], since_check = 0, 0
            interval = max(interval - decrement, shortest)
    return best, best_loss


def _live(task: AttackTask, rows: np.ndarray) -> np.ndarray:
    return np.flatnonzero(~task.broken[rows]) if task.early_stop else np.arange(len(rows))


def _random_direction(task: AttackTask, x: np.ndarray) -> np.ndarray:
    """Random directions of norm 1: uniform scaled to a face of the cube, or Gaussian."""
    if task.norm == "linf":
        noise = 2 * task.rng.random(x.shape, dtype=np.float32) - 1
        return noise / per_image(linf_norm(noise) + 1e-12, x)
    noise = task.rng.standard_normal(x.shape, dtype=np.float32)
    return noise / per_image(l2_norm(noise) + 1e-12, x)


def _ascent(gradient: np.ndarray, norm: str) -> np.ndarray:
    if norm == "linf":
        return np.sign(gradient)
    return gradient / per_image(l2_norm(gradient) + 1e-12, gradient)


def _check(steps: int, restarts: int, rho: float) -> None:
    if steps < 1 or restarts < 1:
        raise ValueError(f"steps and restarts must be >= 1, got {steps} and {restarts}")
    if not 0 <= rho <= 1:
        raise ValueError(f"rho must lie in [0, 1], got {rho}")
