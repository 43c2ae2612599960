"""Square attack in L_inf (Andriushchenko et al. 2020) as AutoAttack runs it: scores only."""

from __future__ import annotations

import math

import numpy as np

from tfdq.robustness.attacks.base import AttackTask
from tfdq.robustness.attacks.registry import register_attack

# Iterations of a 10,000-query run after which the share of changed pixels is halved once more.
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@register_attack(
    "square",
    gradients=False,
    title="Square",
    suites={"standard": 50, "record": 50, "quick": 50},
    settings={"queries": "square_queries"},
)
def square(
    task: AttackTask,
    *,
    queries: int = 5000,
    p_init: float = 0.8,
    restarts: int = 1,
    rescale_schedule: bool = False,
) -> np.ndarray:
    """Random search over squares of the perturbation's corners, +eps or -eps per channel.

    Starts from vertical stripes; each query sets one square, the same for all images of a batch,
    to a corner of the ball and keeps it where the margin z_y - max_{i != y} z_i falls. Defaults as
    in AutoAttack (Croce & Hein 2020): 5,000 queries, p = 0.8, no rescaled schedule.

    Args:
        task: The batch; images [n, height, width, channels].
        queries: Squares tried per image and restart. What was asked before is not asked again, so
            that fewer queries are counted.
        p_init: Share of the pixels in the first square, in (0, 1].
        restarts: Runs from new stripes.
        rescale_schedule: Stretch the schedule of sizes (made for 10,000 queries) to `queries`.

    Returns:
        The image of lowest margin for each example.

    Raises:
        ValueError: Images that are not [height, width, channels], or an option out of range.
    """
    if task.x.ndim != 4:
        raise ValueError(f"square needs images [n, height, width, channels], got {task.x.shape}")
    if queries < 1 or restarts < 1:
        raise ValueError(f"queries and restarts must be >= 1, got {queries} and {restarts}")
    if not 0 < p_init <= 1:
        raise ValueError(f"p_init must lie in (0, 1], got {p_init}")
    best = task.x.copy()
    best_margin = np.full(len(task.x), np.inf, np.float32)
    for _ in range(restarts):
        rows = task.active()
        if len(rows) == 0:
            break
        found, margins = search_squares(
            task, rows, queries, p_init=p_init, rescale_schedule=rescale_schedule
        )
        better = margins < best_margin[rows]
        best[rows[better]] = found[better]
        best_margin[rows[better]] = margins[better]
    return best


def margin_of(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """True logit minus the largest other one, [n]; negative when misclassified."""
    index = np.arange(len(labels))
    others = logits.copy()
    others[index, labels] = -np.inf
    return logits[index, labels] - others.max(axis=1)


def square_share(iteration: int, p_init: float) -> float:
    """The share of pixels a square covers at an iteration of a 10,000-query schedule."""
    return p_init / 2 ** sum(iteration > limit for limit in _HALVINGS)


def search_squares(
    task: AttackTask,
    rows: np.ndarray,
    queries: int,
    *,
    p_init: float,
    rescale_schedule: bool,
    start: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """One run of the random search.

    The candidates live in one array of which only the square changes: it is written, queried, and
    put back where the query did not help. So an iteration costs its forward pass and little else,
    and nothing for an image whose answer is known: the classifier is taken to be deterministic.

    Args:
        task: The batch.
        rows: The examples to attack.
        queries: Squares tried (one query more goes to the starting images).
        p_init: Share of the pixels in the first square.
        rescale_schedule: Stretch the schedule of sizes to `queries`.
        start: Images to start from, [len(rows), ...]; stripes by default.

    Returns:
        The images of lowest margin and those margins, for each of `rows`.
    """
    height, width, channels = task.x.shape[1:]
    if start is None:
        stripes = _signs(task, (len(rows), 1, width, channels))
        candidates = task.project(task.x[rows] + task.eps * stripes, rows)
    else:
        candidates = task.project(start, rows)
    found, margins = candidates.copy(), np.empty(len(rows), np.float32)
    margins[:] = margin_of(task.scores(candidates, rows), task.y[rows])
    # `live` are positions in `rows` (and `found`); the packed arrays hold only those.
    live = np.arange(len(rows))
    lower, upper = task.lower[rows], task.upper[rows]
    # Both ends of the ball of each value of an image, that are apart by this.
    width_of_ball = np.broadcast_to(np.float32(2 * task.eps), task.x.shape[1:])
    changed, tried = np.zeros(len(rows), np.int64), dict[tuple[int, int, int, bytes], int]()
    for iteration in range(queries):
        keep = ~task.broken[rows[live]] if task.early_stop else np.ones(len(live), bool)
        if not keep.all():
            found[live] = candidates
            live, candidates = live[keep], candidates[keep]
            lower, upper = lower[keep], upper[keep]
        if len(live) == 0:
            break
        scheduled = int(iteration / queries * 10000) if rescale_schedule else iteration
        side = max(round(math.sqrt(square_share(scheduled, p_init) * height * width)), 1)
        side = min(side, height, width)
        top = int(task.rng.random() * (height - side))
        left = int(task.rng.random() * (width - side))
        window = np.s_[:, top : top + side, left : left + side, :]
        signs = _signs(task, (1, 1, 1, channels))
        shift = width_of_ball[window[1:]] * signs
        before = candidates[window].copy()
        proposal = np.minimum(np.maximum(before + shift, lower[window]), upper[window])
        # What a square would leave as it is, or was refused for since the image last changed, is
        # not asked again: at the end, when squares are few pixels wide, that is most of them.
        square = (side, top, left, signs.tobytes())
        new_to = changed[live] > tried.get(square, -1)
        tried[square] = iteration
        moved = np.flatnonzero((proposal != before).any(axis=(1, 2, 3)) & new_to)
        if len(moved) == 0:
            continue
        candidates[window][moved] = proposal[moved]
        asked = live[moved]
        new = margin_of(task.scores(candidates[moved], rows[asked]), task.y[rows[asked]])
        better = (new < margins[asked]) | task.broken[rows[asked]]
        margins[asked[better]] = new[better]
        changed[asked[better]] = iteration
        rejected = moved[~better]
        candidates[window][rejected] = before[rejected]
    found[live] = candidates
    return found, margins


def _signs(task: AttackTask, shape: tuple[int, ...]) -> np.ndarray:
    return np.sign(2 * task.rng.random(shape, dtype=np.float32) - 1)
