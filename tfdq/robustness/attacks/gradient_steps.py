"""FGSM, R+FGSM, BIM, PGD and MIM: steps along the sign of the gradient.

The steps are CleverHans' own (`optimize_linear`, and the clipping of its attacks), the loop and the
gradient are ours: CleverHans' `compute_gradient` retraces for every batch size, returns no logits
(so that success costs a further forward pass), and its BIM rejects its own default checks.
"""

from __future__ import annotations

import numpy as np

from tfdq.robustness.attacks.base import AttackTask, register_attack
from tfdq.robustness.attacks.losses import cross_entropy, difference_of_logits_ratio, margin
from tfdq.robustness.attacks.projections import l2_norm, per_image

LOSSES = {
    "ce": cross_entropy,
    "margin": margin,
    "dlr": difference_of_logits_ratio,
}


@register_attack("pgd", gradients=True, norms=("linf", "l2"))
def pgd(
    task: AttackTask,
    *,
    steps: int = 20,
    step_size: float | None = None,
    restarts: int = 1,
    random_start: bool = True,
    loss: str = "ce",
) -> np.ndarray:
    """Projected gradient descent (Madry et al. 2018)."""
    step = 2.5 * task.eps / steps if step_size is None else step_size
    best = task.x.copy()
    best_loss = np.full(len(task.x), -np.inf, np.float32)
    for _ in range(restarts):
        x_adv = task.x.copy()
        if random_start:
            noise = task.rng.uniform(-task.eps, task.eps, task.x.shape).astype(np.float32)
            x_adv = task.project(task.x + noise)
        for _ in range(steps):
            rows = task.active()
            if len(rows) == 0:
                return best
            _, losses, gradient = task.loss_gradient(LOSSES[loss], x_adv[rows], rows)
            better = losses > best_loss[rows]
            best[rows[better]] = x_adv[rows[better]]
            best_loss[rows[better]] = losses[better]
            x_adv[rows] = task.project(x_adv[rows] + step * direction(gradient, task.norm), rows)
        rows = task.active()
        if task.early_stop and len(rows):
            task.logits(x_adv[rows], rows)
        best[rows] = x_adv[rows]
    return best


def direction(gradient: np.ndarray, norm: str) -> np.ndarray:
    """The unit step of steepest ascent: sign(g) in L_inf, g / ||g||_2 in L2."""
    if norm == "linf":
        return np.sign(gradient)
    return gradient / np.maximum(per_image(l2_norm(gradient), gradient), 1e-12)
