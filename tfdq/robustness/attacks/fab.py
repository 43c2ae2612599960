"""Targeted FAB in L_inf (Croce & Hein 2020b), as AutoAttack runs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tfdq.robustness.attacks.base import AttackTask
from tfdq.robustness.attacks.losses import targeted_margin
from tfdq.robustness.attacks.projections import inward, linf_norm, per_image
from tfdq.robustness.attacks.registry import AttackCost, register_attack

_OVERSHOOT = 1.05
_BACKWARD = 0.9
_MOST_BIAS = 0.1


def _cost(options: Mapping[str, Any], classes: int) -> AttackCost:
    aims = min(options["target_classes"], classes - 1)
    steps = options["steps"] * options["restarts"] * aims
    return AttackCost(steps, steps)


@register_attack(
    "fab",
    gradients=True,
    cost=_cost,
    title="FAB",
    suites={"standard": 40, "record": 40},
    settings={"target_classes": "target_classes"},
)
def fab(
    task: AttackTask, *, steps: int = 100, restarts: int = 1, target_classes: int = 9
) -> np.ndarray:
    """Fast adaptive boundary attack: walks along the boundary towards the clean image.

    For each of the most likely wrong classes, the boundary to that class is linearised and the
    point is projected onto it, with a pull towards the clean image; a point across the boundary is
    drawn back. Constants as in AutoAttack: overshoot 1.05, backward step 0.9, bias at most 0.1.
    FAB looks for the smallest perturbation; here an example is left alone as soon as one within
    eps is found.

    Args:
        task: The batch.
        steps: Projections per target and restart.
        restarts: The second and later ones start from a random point within eps / 2.
        target_classes: How many classes to aim at, most likely first.

    Returns:
        The broken images; clean images for the others (there is no best loss in FAB).
    """
    if steps < 1 or restarts < 1:
        raise ValueError(f"steps and restarts must be >= 1, got {steps} and {restarts}")
    for restart in range(restarts):
        for rows, aims in task.targeted_batches(target_classes):
            _run(task, rows, aims, steps, restart > 0)
    return task.adversarial


def _run(
    task: AttackTask, rows: np.ndarray, aims: np.ndarray, steps: int, random_start: bool
) -> None:
    low, high = inward(task.clip)
    shape = task.x.shape[1:]
    first, last = (np.broadcast_to(end, shape).ravel() for end in (low, high))
    # Where channels differ in their radius, distances are shares of it: a coordinate of radius r
    # may move r times as far as one of radius 1.
    radius = task.eps
    unit = 1.0 if isinstance(radius, float) else np.broadcast_to(radius / np.max(radius), shape)
    pace = None if isinstance(unit, float) else np.ravel(unit)
    x = task.x[rows]
    current = x.copy()
    if random_start:
        noise = 2 * task.rng.random(x.shape, dtype=np.float32) - 1
        noise *= np.float32(0.5 * task.eps) / per_image(linf_norm(noise), noise)
        current = np.clip(x + noise, low, high)
    for _ in range(steps):
        _, difference, gradient = task.loss_gradient(
            targeted_margin, current, rows, aims, record=False
        )
        # The hyperplane difference + <gradient, z - current> = 0, seen from both points.
        flat = gradient.reshape(len(rows), -1)
        offset = np.einsum("ij,ij->i", flat, (x - current).reshape(len(rows), -1))
        to_boundary = project_to_hyperplane(current, gradient, -difference, first, last, pace)
        from_clean = project_to_hyperplane(x, gradient, -difference - offset, first, last, pace)
        reach = np.maximum(linf_norm(_share(to_boundary, unit)), 1e-8)
        reach_clean = np.maximum(linf_norm(_share(from_clean, unit)), 1e-8)
        bias = per_image(np.minimum(reach / (reach + reach_clean), _MOST_BIAS), x)
        current = (current + _OVERSHOOT * to_boundary) * (1 - bias) + (
            x + _OVERSHOOT * from_clean
        ) * bias
        current = np.clip(current, low, high).astype(np.float32)
        logits = task.scores(current, rows, record=False)
        across = np.argmax(logits, axis=1) != task.y[rows]
        inside = (current >= task.lower[rows]) & (current <= task.upper[rows])
        found = across & inside.reshape(len(rows), -1).all(axis=1)
        if task.proxy is None:
            task.record(current[found], logits[found], rows[found])
        elif found.any():  # a proxy says which side a point is on, not whether it counts
            task.logits(current[found], rows[found])
        current[across] = x[across] + (current[across] - x[across]) * np.float32(_BACKWARD)
        if task.early_stop and found.any():
            keep = ~task.broken[rows]
            rows, aims, x, current = rows[keep], aims[keep], x[keep], current[keep]
            if len(rows) == 0:
                return


def _share(delta: np.ndarray, unit: float | np.ndarray) -> np.ndarray:
    # A coordinate of radius 0 never moves.
    return delta if isinstance(unit, float) else delta / np.where(unit > 0, unit, 1)


def project_to_hyperplane(
    points: np.ndarray,
    normals: np.ndarray,
    gaps: np.ndarray,
    low: float | np.ndarray,
    high: float | np.ndarray,
    pace: np.ndarray | None = None,
) -> np.ndarray:
    """The perturbation of least L_inf norm that reaches a hyperplane inside a box.

    Solves min ||d||_inf with <w, d> = gap and low <= t + d <= high. Every coordinate moves by
    min(lam, room) along sign(w * gap), room being its distance to the box; lam is the root of
    sum |w| min(lam, room) = |gap|, a concave piecewise linear function that Newton's method climbs
    to the root in finitely many steps. If the box is too small, every coordinate moves to its end.
    With paces p it is the norm ||d / p||_inf, and coordinates move by min(lam p, room).

    Args:
        points: t, [n, ...], inside the box.
        normals: w, like `points`.
        gaps: [n].
        low: Lower end of the box; one number, or one for each coordinate.
        high: Upper end of the box, likewise.
        pace: p, >= 0, one for each coordinate; 1 by default.

    Returns:
        d, float32 like `points`.
    """
    w = normals.reshape(len(normals), -1)
    t = points.reshape(len(points), -1)
    upwards = (w * np.sign(gaps)[:, np.newaxis]) > 0
    weight = np.abs(w)
    room = np.where(upwards, high - t, t - low)
    if pace is not None:
        room = np.where(pace > 0, room, 0.0)
    need = np.abs(gaps)
    radius = np.zeros(len(w))
    pending = np.arange(len(w))
    for _ in range(w.shape[1] + 1):
        reach = _paced(radius[pending, np.newaxis], pace)
        free: np.ndarray = room[pending] > reach
        if pace is not None:
            free = free * pace
        slope = np.einsum("ij,ij->i", weight[pending], free, dtype=np.float64)
        spent = np.einsum(
            "ij,ij->i", weight[pending], np.minimum(room[pending], reach), dtype=np.float64
        )
        lacking = need[pending] - spent
        with np.errstate(divide="ignore", invalid="ignore"):
            advance = np.where(slope > 0, lacking / slope, np.inf)
        # Newton only ever climbs; what remains below the last digit is rounding.
        moving = (advance > 1e-7 * np.maximum(radius[pending], 1e-12)) & (slope > 0)
        done_full = (slope == 0) & (lacking > 0)
        radius[pending[done_full]] = np.inf
        radius[pending[moving]] += advance[moving]
        pending = pending[moving]
        if len(pending) == 0:
            break
    step = np.minimum(room, _paced(radius[:, np.newaxis], pace))
    signed = np.where(weight > 0, np.where(upwards, step, -step), 0.0)
    return signed.astype(np.float32).reshape(points.shape)


def _paced(radius: np.ndarray, pace: np.ndarray | None) -> np.ndarray:
    if pace is None:
        return radius
    # No radius, however large, moves a coordinate of pace 0.
    return np.where(pace > 0, radius * np.where(pace > 0, pace, 1.0), 0.0)
