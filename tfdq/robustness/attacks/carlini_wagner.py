"""Carlini & Wagner's L2 attack (2017), written anew.

CleverHans' fails beyond its first batch (its optimizer keeps the variables of that one), aims *at*
the label it is given while told not to, and gives its trade-off constant the shape of the images
though the search is over one number an image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tfdq.robustness.attacks.adam import Adam
from tfdq.robustness.attacks.base import AttackTask
from tfdq.robustness.attacks.losses import margin
from tfdq.robustness.attacks.projections import l2_norm, per_image
from tfdq.robustness.attacks.registry import AttackCost, register_attack

# tanh reaches the ends of the clip range only at infinity.
_ALMOST_ONE = 0.999999
_LARGEST_CONSTANT = 1e10


def _cost(options: Mapping[str, Any], classes: int) -> AttackCost:
    return AttackCost(options["search_steps"] * options["steps"], 0)


@register_attack("cw", gradients=True, norms=("l2",), cost=_cost, title="CW")
def carlini_wagner(
    task: AttackTask,
    *,
    steps: int = 100,
    search_steps: int = 9,
    initial_constant: float = 1e-2,
    learning_rate: float = 0.05,
    confidence: float = 0.0,
) -> np.ndarray:
    r"""Looks for the smallest L2 perturbation that is misclassified.

    Minimises :math:`\lVert x' - x \rVert_2^2 + c \max(z_y - \max_{i \ne y} z_i + \kappa, 0)` by
    Adam over w with x' = tanh(w) scaled to the clip range, and searches c for each image: ten times
    larger until it succeeds, then by halving. An image is broken when a perturbation of norm at
    most eps is found, and then left alone; with `early_stop` off the search goes on to the smallest
    perturbation, and an image that needs more than eps comes back pulled into the ball.

    Args:
        task: The batch, in norm ``"l2"``.
        steps: Gradient steps for each constant.
        search_steps: Constants tried.
        initial_constant: The first, for images scaled to [0, 1].
        learning_rate: Of Adam, in w.
        confidence: kappa, >= 0, in logits.

    Returns:
        The smallest misclassified image found for each example; the last iterate where none was.

    Raises:
        ValueError: An option out of range.
    """
    if steps < 1 or search_steps < 1:
        raise ValueError(f"steps and search_steps must be >= 1, got {steps}, {search_steps}")
    if initial_constant <= 0 or learning_rate <= 0 or confidence < 0:
        raise ValueError(
            "need initial_constant > 0, learning_rate > 0 and confidence >= 0, got "
            f"{initial_constant}, {learning_rate} and {confidence}"
        )
    low, span = task.clip[0], task.clip[1] - task.clip[0]
    n = len(task.x)
    origin = np.arctanh(_ALMOST_ONE * (2 * (task.x.astype(np.float64) - low) / span - 1))
    constant = np.full(n, initial_constant)
    failing, working = np.zeros(n), np.full(n, _LARGEST_CONSTANT)
    smallest = np.full(n, np.inf)
    best = task.x.copy()
    adam = Adam(task.x.shape, learning_rate)
    for _ in range(search_steps):
        adam.reset()
        w = origin.copy()
        succeeded = np.zeros(n, bool)
        for _ in range(steps):
            rows = task.active()
            if len(rows) == 0:
                return best
            bent = np.tanh(w[rows])
            x_adv = np.clip(low + span * (bent + 1) / 2, *task.clip).astype(np.float32)
            logits, lead, slope = task.loss_gradient(margin, x_adv, rows, record=False)
            delta = x_adv - task.x[rows]
            distance = l2_norm(delta.astype(np.float64))
            wrong = np.argmax(logits, axis=1) != task.y[rows]
            success = wrong & (lead >= confidence)
            succeeded[rows] |= success
            smaller = success & (distance < smallest[rows])
            smallest[rows[smaller]] = distance[smaller]
            best[rows[smaller]] = x_adv[smaller]
            near = smaller & (distance <= task.eps)
            task.record(x_adv[near], logits[near], rows[near])
            pushing = per_image(np.where(lead < confidence, constant[rows], 0), delta)
            # In units of the clip range, as the constant is; lead rises where the loss falls.
            pull = 2 * delta / span**2 - pushing * slope
            w[rows] -= adam.step(pull * span * (1 - bent**2) / 2, rows)
        working = np.where(succeeded, np.minimum(working, constant), working)
        failing = np.where(succeeded, failing, np.maximum(failing, constant))
        halved = working < _LARGEST_CONSTANT
        constant = np.where(halved, (failing + working) / 2, constant * 10)
    return best
