"""Checks of the gradient itself: it exists, points uphill, and holds nearby."""

from __future__ import annotations

import numpy as np

from tfdq.robustness.attacks.losses import cross_entropy, margin
from tfdq.robustness.attacks.ranges import largest
from tfdq.robustness.masking.attack_checks import ATHALYE, CARLINI
from tfdq.robustness.masking.task import AuditTask
from tfdq.robustness.masking.verdict import Check

STEP_SHARE = 0.5
NEAR_SHARE = 0.05


def zero_gradients(task: AuditTask) -> Check:
    """The gradient of the cross-entropy must not vanish."""
    limit = task.thresholds.zero_gradients
    _, _, clean = task.source.loss_gradient(cross_entropy, task.x, task.y)
    _, _, moved = task.source.loss_gradient(cross_entropy, _noisy(task, 1.0, stream=11), task.y)
    shares, sizes = [], []
    for gradient in (clean, moved):
        size = np.abs(gradient.reshape(len(gradient), -1)).max(1)
        shares.append(float(np.mean(~np.isfinite(size) | (size == 0))))
        sizes.append(float(np.median(size)))
    return task.verdict(
        "zero gradients",
        max(shares) <= limit,
        {
            "share_at_clean_images": shares[0],
            "share_at_random_points_of_the_ball": shares[1],
            "median_largest_entry": sizes[0],
        },
        f"share of all-zero or non-finite gradients <= {limit:g}",
        f"{ATHALYE} (vanishing gradients); {CARLINI}, section 4.7",
        "the attack stands still where the gradient is zero",
    )


def local_linearity(task: AuditTask) -> Check:
    """A short step along the gradient raises the loss, and the gradient is alike nearby.

    The margin of the logits is used, so that the softmax's saturation has no part in it. "Uphill":
    of the examples whose margin loss changes at all half of eps along the gradient's sign (where a
    quantizer rounds the step away it does not, and rightly so), the share where it rises.
    "Alignment": the mean cosine between the gradients at the image and at a random point within a
    twentieth of eps.
    """
    bounds = task.thresholds
    source = task.source
    _, before, gradient = source.loss_gradient(margin, task.x, task.y)
    step = STEP_SHARE * task.eps
    stepped = np.clip(task.x + step * np.sign(gradient), *task.clip).astype(np.float32)
    _, after, _ = source.loss_gradient(margin, stepped, task.y)
    near = _noisy(task, NEAR_SHARE, stream=12)
    _, _, other = source.loss_gradient(margin, near, task.y)
    predicted = (gradient * (stepped - task.x)).reshape(len(gradient), -1).sum(1)
    risen = after - before
    uphill = float(np.sum(risen > 0) / max(np.sum(risen != 0), 1))
    alignment = float(np.mean(_cosine(gradient, other)))
    ratio = risen / np.where(predicted > 0, predicted, np.inf)
    return task.verdict(
        "local linearity",
        uphill >= bounds.uphill and alignment >= bounds.alignment,
        {
            "uphill": uphill,
            "unchanged": float(np.mean(risen == 0)),
            "alignment": alignment,
            "median_rise_over_predicted_rise": float(np.median(ratio)),
            "step": largest(step),
            "distance_of_near_points": NEAR_SHARE * largest(task.eps),
        },
        f"loss rises along the gradient for >= {bounds.uphill:g} of the examples, mean cosine of "
        f"near gradients >= {bounds.alignment:g}",
        "Qin et al. 2019 (Local Linearization); Andriushchenko and Flammarion 2020 (gradient "
        f"alignment); {ATHALYE} (shattered gradients)",
        "the gradient does not describe the loss around it",
    )


def _noisy(task: AuditTask, share: float, stream: int) -> np.ndarray:
    rng = np.random.default_rng([task.seed, stream])
    radius = share * task.eps
    noise = rng.uniform(-radius, radius, task.x.shape)
    # Turned back at the ends of the range, not cut off: a pixel at the end would else not move.
    low, high = task.clip
    outside = (task.x + noise < low) | (task.x + noise > high)
    moved = np.where(outside, task.x - noise, task.x + noise)
    return np.clip(moved, low, high).astype(np.float32)


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine per example; 0 where a gradient is zero or not finite."""
    a = np.nan_to_num(a.reshape(len(a), -1).astype(np.float64), posinf=0, neginf=0)
    b = np.nan_to_num(b.reshape(len(b), -1).astype(np.float64), posinf=0, neginf=0)
    sizes = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.sum(a * b, 1) / np.where(sizes > 0, sizes, np.inf)
