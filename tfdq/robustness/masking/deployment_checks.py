"""Checks that what is attacked is what is deployed: one function, the same every time."""

from __future__ import annotations

import numpy as np

from tfdq.robustness.masking.attack_checks import ATHALYE, CARLINI
from tfdq.robustness.masking.task import AuditTask
from tfdq.robustness.masking.verdict import Check


def determinism(task: AuditTask) -> Check:
    """The same image must get the same logits: asked twice, and in another order."""
    limit = task.thresholds.nondeterminism
    first = task.target.logits(task.x)
    again = task.target.logits(task.x)
    order = np.random.default_rng([task.seed, 21]).permutation(len(task.x))
    shuffled = np.empty_like(first)
    shuffled[order] = task.target.logits(task.x[order])
    spread = max(float(np.median(np.ptp(first, axis=1))), 1e-12)
    repeated = float(np.abs(again - first).max()) / spread
    reordered = float(np.abs(shuffled - first).max()) / spread
    flips = float(np.mean((again.argmax(1) != task.y) | (shuffled.argmax(1) != task.y)))
    return task.verdict(
        "determinism",
        max(repeated, reordered) <= limit,
        {
            "difference_when_repeated": repeated,
            "difference_when_reordered": reordered,
            "share_of_changed_labels": flips,
        },
        f"logits differ by at most {limit:g} of their spread",
        f"{ATHALYE} (stochastic gradients); {CARLINI}, section 4.8",
        "the model draws random numbers, or mixes the images of a batch: attack its expectation",
    )


def twin_and_runtime(task: AuditTask) -> Check:
    """The model, its exact integer twin and the deployed file must decide alike."""
    bounds = task.thresholds
    name = "model vs twin vs runtime"
    criterion = (
        f"equal labels >= {bounds.label_agreement:g} and accuracies under the same adversarial "
        f"images within {bounds.deployed_accuracy_gap:g}"
    )
    source = "what is attacked must be what is deployed; Carlini et al. 2019, section 3.1"
    others = {"twin": task.twin, "runtime": task.runtime}
    given = {label: target for label, target in others.items() if target is not None}
    if not given:
        remark = (
            "neither the integer twin (twin=) nor the deployed file was given (tflite=, command "
            "line: --tflite)"
        )
        return Check(name, "not run", {}, criterion, source, remark)
    images = np.concatenate([task.x, task.pgd.x_adv])
    labels = task.target.predict(images)
    accuracy = _accuracy_on_adversarial(labels, task.y)
    figures: dict[str, float] = {"model_accuracy": accuracy}
    good = True
    for label, target in given.items():
        theirs = target.predict(images)
        agreement = float(np.mean(theirs == labels))
        figures[f"{label}_label_agreement"] = agreement
        figures[f"{label}_accuracy"] = _accuracy_on_adversarial(theirs, task.y)
        gap = abs(figures[f"{label}_accuracy"] - accuracy)
        # A small tolerance keeps 0.98 from failing against 0.98 for a rounding error.
        good &= agreement >= bounds.label_agreement - 1e-9
        good &= gap <= bounds.deployed_accuracy_gap + 1e-9
    return task.verdict(
        name,
        good,
        figures,
        criterion,
        source,
        "the attacked model is not the one that ships: its figures do not carry over",
    )


def _accuracy_on_adversarial(labels: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean(labels[len(y) :] == y))
