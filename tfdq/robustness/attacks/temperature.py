"""PGD on logits divided by a temperature (Gupta & Ajanthan, AAAI 2022).

A network whose logits are large has a softmax that is 0 or 1 in float32: the gradient of its
cross-entropy is zero and PGD stands still, though the network is not robust. Scaling the logits
brings the gradient back. Quantized networks, whose logits grow with their scales, are prone to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tfdq.robustness.attacks.base import AttackTask
from tfdq.robustness.attacks.gradient_steps import ascend, size_of_step, uniform_in_ball
from tfdq.robustness.attacks.losses import scaled_cross_entropy, single_logit
from tfdq.robustness.attacks.registry import AttackCost, cost_of_steps, register_attack

_GRID = np.geomspace(1e-4, 1e4, 97)


def _cost(options: Mapping[str, Any], classes: int) -> AttackCost:
    search = classes if options["scale"] is None else 0
    ascents = cost_of_steps(options, classes)
    return AttackCost(search + ascents.gradients, ascents.queries)


@register_attack("t-pgd", gradients=True, norms=("linf", "l2"), cost=_cost, title="T-PGD")
def temperature_pgd(
    task: AttackTask,
    *,
    steps: int = 20,
    step_size: float | None = None,
    restarts: int = 1,
    scale: float | None = None,
) -> np.ndarray:
    r"""PGD on the cross-entropy of scaled logits, PGD++ with Hessian norm scaling.

    Each image gets the scale beta that makes the Hessian of its loss,
    :math:`\beta^2 J^T (\mathrm{diag}(p) - p p^T) J` with p = softmax(beta z), largest in Frobenius
    norm, J being the Jacobian of the logits at the clean image. That costs one gradient a class.

    Args:
        task: The batch.
        steps: Gradient steps per restart.
        step_size: In input units; 2.5 eps / steps by default.
        restarts: Runs from new random points.
        scale: A beta > 0 for all images, instead of the search.

    Returns:
        The last images.

    Raises:
        ValueError: `steps` or `restarts` below 1, or a scale that is not positive.
    """
    if restarts < 1:
        raise ValueError(f"restarts must be at least 1, got {restarts}")
    if scale is not None and scale <= 0:
        raise ValueError(f"scale must be > 0, got {scale}")
    size = size_of_step(step_size, 2.5 * task.eps, steps)
    everyone = np.arange(len(task.x))
    if scale is None:
        scales = hessian_scale(*_logits_and_gram(task, everyone))
    else:
        scales = np.full(len(task.x), scale)
    final = task.x.copy()
    for _ in range(restarts):
        rows = task.active()
        if len(rows) == 0:
            break
        start = task.project(task.x[rows] + uniform_in_ball(task, rows), rows)
        final[rows], _ = ascend(
            task, start, rows, scaled_cross_entropy, steps=steps, step_size=size, aux=scales[rows]
        )
    return final


def hessian_scale(logits: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """The beta that maximises beta^2 ||J^T (diag(p) - p p^T) J||_F for each image.

    With G = J J^T and A = diag(p) - p p^T the squared norm is trace(A G A G).

    Args:
        logits: [n, classes].
        gram: G, [n, classes, classes].

    Returns:
        float64 [n], from a logarithmic grid of 1e-4 to 1e4 (12 points a decade).
    """
    shifted = (logits - logits.max(axis=1, keepdims=True)).astype(np.float64)
    best, best_norm = np.ones(len(logits)), np.full(len(logits), -np.inf)
    for beta in _GRID:
        p = np.exp(beta * shifted)
        p /= p.sum(axis=1, keepdims=True)
        product = p[:, :, np.newaxis] * (gram - np.einsum("ni,nij->nj", p, gram)[:, np.newaxis])
        norm = beta**4 * np.einsum("nij,nji->n", product, product)
        best = np.where(norm > best_norm, beta, best)
        best_norm = np.maximum(norm, best_norm)
    return best


def _logits_and_gram(task: AttackTask, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits at the clean images and the Gram matrices of their Jacobians."""
    classes = task.clean_logits.shape[1]
    jacobian = []
    logits = task.clean_logits
    for index in range(classes):
        aim = np.full(len(rows), index, np.float32)
        logits, _, slope = task.loss_gradient(single_logit, task.x[rows], rows, aim, record=False)
        jacobian.append(slope.reshape(len(rows), -1))
    stacked = np.stack(jacobian, axis=1).astype(np.float64)
    return logits, stacked @ stacked.transpose(0, 2, 1)
