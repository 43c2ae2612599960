"""An attack made for networks of few activation bits: slopes at the steps' edges, then search.

Found by experiment; docs/attacks.md has the figures. What did not help: smooth values instead of
exact ones, slopes with wide tails, annealing the temperature, and Square *before* the gradients.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tfdq.robustness.attacks.apgd import run_apgd
from tfdq.robustness.attacks.base import AttackTask, register_attack
from tfdq.robustness.attacks.losses import difference_of_logits_ratio, margin
from tfdq.robustness.attacks.square import search_squares
from tfdq.robustness.targets import DifferentiableTarget


@register_attack("low-bit", gradients=True)
def low_bit(
    task: AttackTask,
    *,
    steps: int = 100,
    restarts: int = 3,
    temperature: float = 0.12,
    queries: int = 1000,
    p_init: float = 0.8,
) -> np.ndarray:
    """APGD through a smooth staircase, then a short random search from the best point.

    The straight-through gradient hides most of a low-bit network's weakness. APGD on the DLR loss
    (the margin for two classes) with the network's exact values and slopes that rise at the edges
    of the steps finds more; what it leaves has a small margin that `queries` squares, started from
    the image of highest loss, mostly remove. An image costs restarts * (steps + 1) gradients and
    `queries` queries at most.

    Args:
        task: The batch. The target, or the surrogate where one is given (for an integer twin or a
            ``.tflite`` file), must be a model made by `tfdq.quantize_model`, or a target made by
            `smooth_surrogate`.
        steps: Gradient steps per restart.
        restarts: Runs from new random points.
        temperature: Of the staircase, in steps; see `smooth_surrogate`.
        queries: Of the random search; 0 for gradients only.
        p_init: Share of the pixels in the first square, in (0, 1].

    Returns:
        The image of lowest margin for each example.

    Raises:
        ValueError: No quantized model to take gradients from, or an option out of range.
    """
    if steps < 1 or restarts < 1 or queries < 0:
        raise ValueError(
            "need steps >= 1, restarts >= 1 and queries >= 0, "
            f"got {steps}, {restarts} and {queries}"
        )
    if not 0 < p_init <= 1:
        raise ValueError(f"p_init must lie in (0, 1], got {p_init}")
    task.surrogate = _smoothed(task.surrogate, temperature)
    enough = task.clean_logits.shape[1] > 2
    loss = difference_of_logits_ratio if enough else margin
    best = task.x.copy()
    best_loss = np.full(len(task.x), -np.inf, np.float32)
    for _ in range(restarts):
        rows = task.active()
        if len(rows) == 0:
            return best
        images, losses = run_apgd(task, rows, loss, None, steps=steps)
        better = losses > best_loss[rows]
        best[rows[better]] = images[better]
        best_loss[rows[better]] = losses[better]
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
    model = getattr(source, "model", None)
    if not any(hasattr(layer, "output_grid") for layer in getattr(model, "layers", [])):
        raise ValueError(
            f"low-bit looks inside a quantized model, which {source.name} is not; attack a model "
            "made by tfdq.quantize_model or pass it as surrogate="
        )
    made = smooth_surrogate(model, temperature=temperature)
    grids = made.function.grids  # type: ignore[attr-defined]
    kept_grids, kept = source.companions.get(temperature, (None, made))
    if kept_grids == grids:
        return kept
    source.companions[temperature] = (grids, made)
    return made
