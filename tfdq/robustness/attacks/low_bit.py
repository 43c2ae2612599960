"""An attack made for networks of few activation bits: slopes at the steps' edges, then search.

Found by experiment; docs/attacks.md has the figures and what did not help.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tfdq.robustness.attacks.apgd import run_apgd
from tfdq.robustness.attacks.base import AttackTask
from tfdq.robustness.attacks.losses import (
    difference_of_logits_ratio,
    margin,
    targeted_dlr,
)
from tfdq.robustness.attacks.registry import AttackCost, register_attack
from tfdq.robustness.attacks.square import margin_of, search_squares
from tfdq.robustness.gradients.interface import LossFunction
from tfdq.robustness.targets import DifferentiableTarget


def _cost(options: Mapping[str, Any], classes: int) -> AttackCost:
    # Targeted runs need four classes. Each run ends with a look at its image, the search begins
    # with one.
    aims = min(options["target_classes"], classes - 1) if classes > 3 else 0
    runs = options["restarts"] + aims
    search = options["queries"] + 1 if options["queries"] else 0
    return AttackCost(runs * (options["steps"] + 1), runs + search)


@register_attack(
    "low-bit",
    gradients=True,
    quantized=True,
    cost=_cost,
    title="low-bit",
    suites={"record": 20, "quick": 20},
)
def low_bit(
    task: AttackTask,
    *,
    steps: int = 100,
    restarts: int = 3,
    target_classes: int = 3,
    temperature: float = 0.12,
    queries: int = 2000,
    p_init: float = 0.8,
) -> np.ndarray:
    """APGD through a smooth staircase, then a short random search from the best point.

    The straight-through gradient hides most of a low-bit network's weakness. APGD on the DLR loss
    (the margin for two classes) with the network's exact values and slopes that rise at the edges
    of the steps finds more, first untargeted, then at the most likely wrong classes. What is left
    has a small margin, which `queries` squares, started from the image of lowest margin, mostly
    remove. An image costs (restarts + target_classes) * (steps + 1) gradients at most: 606 by
    default.

    Args:
        task: The batch. The target, or the surrogate where one is given (for an integer twin or a
            ``.tflite`` file), must be a model made by `tfdq.quantize_model`, or a target made by
            `smooth_surrogate`.
        steps: Gradient steps per run.
        restarts: Untargeted runs from new random points.
        target_classes: Targeted runs, most likely class first; needs four classes.
        temperature: Of the staircase, in steps; see `smooth_surrogate`.
        queries: Of the random search; 0 for gradients only.
        p_init: Share of the pixels in the first square, in (0, 1].

    Returns:
        The image of lowest margin for each example.

    Raises:
        ValueError: An option out of range.
    """
    if steps < 1 or restarts < 1 or target_classes < 0 or queries < 0:
        raise ValueError(
            "need steps >= 1, restarts >= 1, target_classes >= 0 and queries >= 0, "
            f"got {steps}, {restarts}, {target_classes} and {queries}"
        )
    if not 0 < p_init <= 1:
        raise ValueError(f"p_init must lie in (0, 1], got {p_init}")
    task = task.through(_smoothed(task.surrogate, temperature))
    classes = task.clean_logits.shape[1]
    untargeted = difference_of_logits_ratio if classes > 2 else margin
    best = task.x.copy()
    lowest = np.full(len(task.x), np.inf, np.float32)

    def run(rows: np.ndarray, loss: LossFunction, aims: np.ndarray | None) -> None:
        images, _ = run_apgd(task, rows, loss, aims, steps=steps)
        margins = margin_of(task.logits(images, rows), task.y[rows])
        # An example may appear several times; its lowest margin comes last and stays.
        for index in np.argsort(-margins, kind="stable"):
            row = rows[index]
            if margins[index] < lowest[row]:
                best[row], lowest[row] = images[index], margins[index]

    for _ in range(restarts):
        rows = task.active()
        if len(rows):
            run(rows, untargeted, None)
    if classes > 3:
        for rows, aims in task.targeted_batches(target_classes):
            run(rows, targeted_dlr, aims)
    rows = task.active()
    if queries and len(rows):
        best[rows], _ = search_squares(
            task, rows, queries, p_init=p_init, rescale_schedule=True, start=best[rows]
        )
    return best


def _smoothed(source: Any, temperature: float) -> DifferentiableTarget:
    """The smooth surrogate of a target's model, kept with the target while its ranges stay."""
    from tfdq.robustness.attacks.surrogates import SmoothNetwork, smooth_surrogate

    if isinstance(getattr(source, "function", None), SmoothNetwork):
        return source
    made = smooth_surrogate(source.model, temperature=temperature)
    grids = made.function.grids  # type: ignore[attr-defined]
    kept_grids, kept = source.companions.get(temperature, (None, made))
    if kept_grids == grids:
        return kept
    source.companions[temperature] = (grids, made)
    return made
