"""Targeted FAB in L_inf (Croce & Hein 2020b), as AutoAttack runs it."""

from __future__ import annotations

import numpy as np

from tfdq.robustness.attacks.base import AttackTask, register_attack
from tfdq.robustness.attacks.losses import targeted_margin
from tfdq.robustness.attacks.projections import linf_norm, per_image

_OVERSHOOT = 1.05
_BACKWARD = 0.9
_MOST_BIAS = 0.1


@register_attack("fab", gradients=True)
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
    low, high = task.clip
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
        to_boundary = project_to_hyperplane(current, gradient, -difference, low, high)
        from_clean = project_to_hyperplane(x, gradient, -difference - offset, low, high)
        reach = np.maximum(linf_norm(to_boundary), 1e-8)
        reach_clean = np.maximum(linf_norm(from_clean), 1e-8)
        bias = per_image(np.minimum(reach / (reach + reach_clean), _MOST_BIAS), x)
        current = (current + _OVERSHOOT * to_boundary) * (1 - bias) + (
            x + _OVERSHOOT * from_clean
        ) * bias
        current = np.clip(current, low, high).astype(np.float32)
        logits = task.scores(current, rows, record=False)
        across = np.argmax(logits, axis=1) != task.y[rows]
        inside = (current >= task.lower[rows]) & (current <= task.upper[rows])
        found = across & inside.reshape(len(rows), -1).all(axis=1)
        if task.stand_in is None:
            task.record(current[found], logits[found], rows[found])
        elif found.any():  # a stand-in says which side a point is on, not whether it counts
            task.logits(current[found], rows[found])
        current[across] = x[across] + (current[across] - x[across]) * np.float32(_BACKWARD)
        if task.early_stop and found.any():
            keep = ~task.broken[rows]
            rows, aims, x, current = rows[keep], aims[keep], x[keep], current[keep]
            if len(rows) == 0:
                return


def project_to_hyperplane(
    points: np.ndarray,
    normals: np.ndarray,
    gaps: np.ndarray,
    low: float | np.ndarray,
    high: float | np.ndarray,
) -> np.ndarray:
    """The perturbation of least L_inf norm that reaches a hyperplane inside a box.

    Solves min ||d||_inf with <w, d> = gap and low <= t + d <= high. Every coordinate moves by
    min(lam, room) along sign(w * gap), room being its distance to the box; lam is the root of
    sum |w| min(lam, room) = |gap|, a concave piecewise linear function that Newton's method climbs
    to the root in finitely many steps. If the box is too small, every coordinate moves to its end.

    Args:
        points: t, [n, ...], inside the box.
        normals: w, like `points`.
        gaps: [n].
        low: Lower end of the box.
        high: Upper end of the box.

    Returns:
        d, float32 like `points`.
    """
    w = normals.reshape(len(normals), -1)
    t = points.reshape(len(points), -1)
    upwards = (w * np.sign(gaps)[:, np.newaxis]) > 0
    weight = np.abs(w)
    room = np.where(upwards, high - t, t - low)
    need = np.abs(gaps)
    radius = np.zeros(len(w))
    pending = np.arange(len(w))
    for _ in range(w.shape[1] + 1):
        free = room[pending] > radius[pending, np.newaxis]
        slope = np.einsum("ij,ij->i", weight[pending], free, dtype=np.float64)
        spent = np.einsum(
            "ij,ij->i",
            weight[pending],
            np.minimum(room[pending], radius[pending, np.newaxis]),
            dtype=np.float64,
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
    step = np.minimum(room, radius[:, np.newaxis])
    signed = np.where(weight > 0, np.where(upwards, step, -step), 0.0)
    return signed.astype(np.float32).reshape(points.shape)
