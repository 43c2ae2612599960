"""FGSM, R+FGSM, BIM, PGD and MIM: steps along the gradient, on CleverHans' pieces.

The form of each loop is CleverHans', and on TensorFlow the step, `optimize_linear`, as well; its
JAX half does not import, so that on JAX and PyTorch the same step is taken in NumPy. Not used are
its `compute_gradient`, which retraces for every batch size and every new function and returns no
logits, so that seeing a success would cost a further forward pass; its random start, which cannot
be seeded; and its BIM, which rejects its own default checks. The projection is exact in float32
where CleverHans' is off by an ulp.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tfdq.robustness.attacks.base import AttackTask
from tfdq.robustness.attacks.losses import (
    cross_entropy,
    difference_of_logits_ratio,
    margin,
)
from tfdq.robustness.attacks.projections import l2_norm, per_image
from tfdq.robustness.attacks.ranges import Extent, as_extent, largest
from tfdq.robustness.attacks.registry import register_attack
from tfdq.robustness.gradients.interface import LossFunction

LOSSES: dict[str, LossFunction] = {
    "ce": cross_entropy,
    "margin": margin,
    "dlr": difference_of_logits_ratio,
}


# Of a gradient, as in CleverHans: below, a step is shorter than asked for.
_LEAST_NORM = np.float32(1e-6)


@register_attack("fgsm", gradients=True, norms=("linf", "l2"), title="FGSM")
def fgsm(task: AttackTask, *, loss: str = "ce") -> np.ndarray:
    """Fast gradient sign method (Goodfellow et al. 2015): one step of size eps.

    Args:
        task: The batch.
        loss: What to climb: ``"ce"``, ``"margin"`` or ``"dlr"``.

    Returns:
        x + eps * sign(gradient), clipped.
    """
    return ascend(
        task, task.x, np.arange(len(task.x)), loss_named(loss), steps=1, step_size=task.eps
    )[0]


@register_attack("r+fgsm", gradients=True, title="R+FGSM")
def random_fgsm(task: AttackTask, *, loss: str = "ce") -> np.ndarray:
    """R+FGSM (Tramer et al. 2018): a random sign step of eps / 2, then FGSM of eps / 2.

    Args:
        task: The batch.
        loss: What to climb: ``"ce"``, ``"margin"`` or ``"dlr"``.

    Returns:
        Images within eps.
    """
    signs = np.sign(task.rng.standard_normal(task.x.shape, dtype=np.float32))
    start = task.project(task.x + np.float32(task.eps / 2) * signs)
    return ascend(
        task, start, np.arange(len(task.x)), loss_named(loss), steps=1, step_size=task.eps / 2
    )[0]


@register_attack(
    "bim", gradients=True, norms=("linf", "l2"), title="BIM", settings={"steps": "pgd_steps"}
)
def bim(
    task: AttackTask, *, steps: int = 10, step_size: float | None = None, loss: str = "ce"
) -> np.ndarray:
    """Basic iterative method (Kurakin et al. 2017): FGSM in small steps from the clean image.

    Args:
        task: The batch.
        steps: Gradient steps.
        step_size: In input units; 1.25 eps / steps by default.
        loss: What to climb: ``"ce"``, ``"margin"`` or ``"dlr"``.

    Returns:
        The last images.
    """
    size = size_of_step(step_size, 1.25 * task.eps, steps)
    rows = np.arange(len(task.x))
    return ascend(task, task.x, rows, loss_named(loss), steps=steps, step_size=size)[0]


@register_attack("mim", gradients=True, norms=("linf", "l2"), title="MIM")
def mim(
    task: AttackTask,
    *,
    steps: int = 10,
    step_size: float | None = None,
    decay: float = 1.0,
    loss: str = "ce",
) -> np.ndarray:
    """Momentum iterative method (Dong et al. 2018): BIM on an accumulated gradient.

    Args:
        task: The batch.
        steps: Gradient steps.
        step_size: In input units; 1.25 eps / steps by default.
        decay: Weight of the old direction, >= 0; each gradient is scaled to a mean absolute value
            of 1 before it is added.
        loss: What to climb: ``"ce"``, ``"margin"`` or ``"dlr"``.

    Returns:
        The last images.
    """
    size = size_of_step(step_size, 1.25 * task.eps, steps)
    rows = np.arange(len(task.x))
    return ascend(task, task.x, rows, loss_named(loss), steps=steps, step_size=size, decay=decay)[0]


@register_attack(
    "pgd", gradients=True, norms=("linf", "l2"), title="PGD", settings={"steps": "pgd_steps"}
)
def pgd(
    task: AttackTask,
    *,
    steps: int = 20,
    step_size: float | None = None,
    restarts: int = 1,
    random_start: bool = True,
    loss: str = "ce",
) -> np.ndarray:
    """Projected gradient descent (Madry et al. 2018).

    Args:
        task: The batch.
        steps: Gradient steps per restart.
        step_size: In input units; 2.5 eps / steps by default.
        restarts: Runs; each from a new random point where `random_start`.
        random_start: Start from a point drawn uniformly from the ball, not from the clean image.
        loss: What to climb: ``"ce"``, ``"margin"`` or ``"dlr"``.

    Returns:
        The last images of the last run; with `early_stop` off, those of highest loss of all runs.

    Raises:
        ValueError: `steps` or `restarts` below 1, or an unknown loss.
    """
    if restarts < 1:
        raise ValueError(f"restarts must be at least 1, got {restarts}")
    size = size_of_step(step_size, 2.5 * task.eps, steps)
    best = task.x.copy()
    best_loss = np.full(len(task.x), -np.inf, np.float32)
    for _ in range(restarts):
        rows = task.active()
        if len(rows) == 0:
            break
        start = task.x[rows]
        if random_start:
            start = task.project(start + uniform_in_ball(task, rows), rows)
        images, losses = ascend(task, start, rows, loss_named(loss), steps=steps, step_size=size)
        better = losses >= best_loss[rows]
        best[rows[better]] = images[better]
        best_loss[rows[better]] = losses[better]
    return best


def ascend(
    task: AttackTask,
    start: np.ndarray,
    rows: np.ndarray,
    loss: LossFunction,
    *,
    steps: int,
    step_size: Extent,
    decay: float | None = None,
    aux: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Steps of steepest ascent of a loss, each projected into the ball.

    The gradient of a step brings the logits of the step before, so successes are seen for nothing;
    the last images cost one forward pass where the attack stops early.

    Args:
        task: The batch.
        start: First images, inside the ball, [len(rows), ...].
        rows: The examples to attack.
        loss: What to climb.
        steps: Gradient steps, >= 1.
        step_size: In input units.
        decay: Of the accumulated gradient (MIM); None for the bare gradient.
        aux: For the loss, one number for each of `rows`.

    Returns:
        The last images and the loss one step before them, [len(rows)].
    """
    x_adv = start.copy()
    losses = np.full(len(rows), -np.inf, np.float32)
    accumulated = np.zeros_like(x_adv) if decay is not None else None
    aux = np.zeros(len(rows), np.float32) if aux is None else aux
    for _ in range(steps):
        live = _live(task, rows)
        if len(live) == 0:
            return x_adv, losses
        _, losses[live], gradient = task.loss_gradient(loss, x_adv[live], rows[live], aux[live])
        if accumulated is not None and decay is not None:
            mean = np.mean(np.abs(gradient), axis=tuple(range(1, gradient.ndim)), keepdims=True)
            gradient = decay * accumulated[live] + gradient / np.maximum(mean, 1e-12)
            accumulated[live] = gradient
        step = steepest_step(gradient, step_size, task.norm)
        moved = x_adv[live] + step
        if accumulated is None:
            # As in CleverHans' PGD, the clip range comes before the ball; it matters in L2 only.
            moved = np.clip(moved, *task.clip)
        x_adv[live] = task.project(moved, rows[live])
    live = _live(task, rows)
    if task.early_stop and len(live):
        task.logits(x_adv[live], rows[live])
    return x_adv, losses


def loss_named(name: str) -> LossFunction:
    """The loss an option names.

    Raises:
        ValueError: There is none of that name.
    """
    if name not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {name!r}")
    return LOSSES[name]


def size_of_step(given: Any, reach: Extent, steps: int) -> Extent:
    """The step size: the given one, or `reach` divided among the steps.

    Raises:
        ValueError: `steps` below 1, or a given size that is not positive.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if given is None:
        return reach / steps
    size = as_extent(given, "step_size")
    if np.min(size) <= 0:
        raise ValueError(f"step_size must be positive, got {given}")
    return size


def steepest_step(gradient: np.ndarray, size: Extent, norm: str) -> np.ndarray:
    """The step of the given norm that a linear function rises most along.

    Args:
        gradient: float32 [n, ...].
        size: Length of the step; in L_inf also one for each channel.
        norm: ``"linf"`` or ``"l2"``.

    Returns:
        size * sign(g), or size * g / ||g||_2, by CleverHans where Keras runs on TensorFlow.
    """
    import keras

    if keras.backend.backend() != "tensorflow":
        return steepest_step_in_numpy(gradient, size, norm)
    import tensorflow as tf
    from cleverhans.tf2.utils import optimize_linear

    length = size if isinstance(size, float) else tf.constant(size, tf.float32)
    return optimize_linear(tf.constant(gradient), length, np.inf if norm == "linf" else 2).numpy()


def steepest_step_in_numpy(gradient: np.ndarray, size: Extent, norm: str) -> np.ndarray:
    """The step of `steepest_step` without CleverHans: the same to rounding, in L_inf exactly."""
    length = np.asarray(size, np.float32)
    if norm == "linf":
        return length * np.sign(gradient)
    return length * gradient / per_image(np.maximum(l2_norm(gradient), _LEAST_NORM), gradient)


def uniform_in_ball(task: AttackTask, rows: np.ndarray) -> np.ndarray:
    """Points drawn uniformly from the ball of radius eps, float32 [len(rows), ...]."""
    shape = (len(rows), *task.x.shape[1:])
    if task.norm == "linf":
        return task.rng.uniform(-task.eps, task.eps, shape).astype(np.float32)
    noise = task.rng.standard_normal(shape, dtype=np.float32)
    dimension = int(np.prod(shape[1:]))
    radius = largest(task.eps) * task.rng.random(len(rows)) ** (1 / dimension)
    return noise * per_image((radius / l2_norm(noise)).astype(np.float32), noise)


def _live(task: AttackTask, rows: np.ndarray) -> np.ndarray:
    return np.flatnonzero(~task.broken[rows]) if task.early_stop else np.arange(len(rows))
