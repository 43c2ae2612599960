"""Plant an adversarial image by construction and see whether the gradients lead to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tfdq.robustness.gradients.interface import Gradients
from tfdq.robustness.masking.task import AuditTask
from tfdq.robustness.masking.verdict import Check

EXAMPLES = 32
INNER_POINTS = 128
BOUNDARY_POINTS = 4
INNER_RADIUS = 0.9
STEPS = 60
STARTS = 2
RIDGE = 1e-3


def planted_image(task: AuditTask, features: Gradients) -> Check:
    """The binarization test: find an adversarial image that is known to exist.

    For each example a linear readout of the model's features is fitted that tells random points
    inside the ball (class 0, the clean image among them) from a few of its corners (class 1). Where
    it separates them, a corner is by construction an adversarial image of this binary classifier,
    and random sampling inside found none. PGD through the features must find one: where it does
    not, the gradients of the features are masked.

    Args:
        task: What is audited.
        features: From images (n, ...) to features (n, ...), differentiated as the attacks
            differentiate the model.
    """
    limit = task.thresholds.planted_found
    name = "planted adversarial image"
    criterion = f"share of planted adversarial images found >= {limit:g}"
    source = "Zimmermann et al. 2022 (Increasing Confidence in Adversarial Robustness Evaluations)"
    rng = np.random.default_rng([task.seed, 31])
    clean = task.x[:EXAMPLES]
    readouts, thresholds, planted = _plant(_in_batches(features, task), clean, task, rng)
    figures: dict[str, Any] = {"tried": len(clean), "planted": int(planted.sum())}
    if planted.sum() < max(1, len(clean) // 4):
        remark = "no linear readout of the features tells corners of the ball from inner points"
        return Check(name, "not run", figures, criterion, source, remark)
    found = _search(features, clean[planted], readouts[planted], thresholds[planted], task, rng)
    share = float(np.mean(found))
    return task.verdict(
        name,
        share >= limit,
        {**figures, "share_found": share, "steps": STEPS, "starts": STARTS},
        criterion,
        source,
        "the gradients do not lead to adversarial images that are there by construction",
    )


def _in_batches(features: Gradients, task: AuditTask) -> Callable[[np.ndarray], np.ndarray]:
    def compute(images: np.ndarray) -> np.ndarray:
        size = task.batch_size
        parts = [features.values(images[at : at + size]) for at in range(0, len(images), size)]
        return np.concatenate([part.reshape(len(part), -1) for part in parts]).astype(np.float64)

    return compute


def _plant(
    features: Callable[[np.ndarray], np.ndarray],
    clean: np.ndarray,
    task: AuditTask,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fit one readout per example.

    Returns:
        Weights (n, features), thresholds (n,), and which examples have a planted image (n,).
    """
    weights, thresholds, planted = [], [], []
    for image in clean:
        inner = rng.uniform(-1, 1, (INNER_POINTS, *image.shape))
        inner[: INNER_POINTS // 2] = np.sign(inner[: INNER_POINTS // 2])
        inner[0] = 0.0
        corners = np.sign(rng.uniform(-1, 1, (BOUNDARY_POINTS, *image.shape)))
        moves = task.eps * np.concatenate([INNER_RADIUS * inner, corners])
        points = np.clip(image + moves, *task.clip).astype(np.float32)
        values = features(points)
        middle, spread = values.mean(0), values.std(0)
        scale = np.where(spread > 0, 1 / np.where(spread > 0, spread, 1), 0.0)
        direction = _ridge((values - middle) * scale) * scale
        scores = (values - middle) @ direction
        highest_inner = scores[:INNER_POINTS].max()
        highest_corner = scores[INNER_POINTS:].max()
        weights.append(direction)
        thresholds.append(middle @ direction + (highest_inner + highest_corner) / 2)
        planted.append(highest_corner - highest_inner > 1e-6 * max(1.0, float(np.ptp(scores))))
    return np.stack(weights), np.array(thresholds), np.array(planted)


def _ridge(values: np.ndarray) -> np.ndarray:
    """Return the least-squares readout of +1 at the corners and -1 inside, classes balanced."""
    points = len(values)
    wanted = np.where(np.arange(points) < INNER_POINTS, -1.0, 1.0)
    share = np.where(wanted < 0, 0.5 / INNER_POINTS, 0.5 / BOUNDARY_POINTS)
    root = np.sqrt(share)[:, None]
    gram = (root * values) @ (root * values).T
    ridge = RIDGE * np.trace(gram) / points + 1e-12
    return (root * values).T @ np.linalg.solve(gram + ridge * np.eye(points), root[:, 0] * wanted)


def _search(
    features: Gradients,
    clean: np.ndarray,
    readouts: np.ndarray,
    thresholds: np.ndarray,
    task: AuditTask,
    rng: np.random.Generator,
) -> np.ndarray:
    """Climb each readout with PGD; return which examples crossed their threshold."""
    weights = readouts.astype(np.float32)
    shape = features.values(clean[:1].astype(np.float32)).shape[1:]
    cotangents = weights.reshape(len(weights), *shape)
    low = np.maximum(clean - task.eps, task.clip[0]).astype(np.float32)
    high = np.minimum(clean + task.eps, task.clip[1]).astype(np.float32)
    found = np.zeros(len(clean), bool)
    for start in range(STARTS):
        noise = rng.uniform(-task.eps, task.eps, clean.shape) * (start > 0)
        images = np.clip(clean + noise, low, high).astype(np.float32)
        for step in range(STEPS + 1):
            values, gradient = features.pull_back(images, cotangents)
            found |= (values.reshape(weights.shape) * weights).sum(1) > thresholds
            if found.all():
                return found
            # From a quarter of the radius down to a fiftieth, so that it both travels and settles.
            size = task.eps * 0.25 * (0.08 ** (step / STEPS))
            images = np.clip(images + size * np.sign(gradient), low, high).astype(np.float32)
    return found
