"""What is measured of a file for its card, and again when the card is checked."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfdq.zoo.cards import Certified, Robust

TWIN_PGD_STEPS = 20
_CERTIFIED_STEPS = 4


def activation_bits(graph: Any) -> int:
    """Return the fewest bits that an activation of a file uses: those behind its ReLUs.

    Args:
        graph: of the file.
    """
    from tflite_export.runtime.inspection import describe

    rows = describe(graph)
    return min((r["activation_bits"] for r in rows if r["activation_bits"]), default=8)


def share(right: int, images: int) -> dict[str, Any]:
    """Return the fields of a `Share`: images that are right, of how many."""
    from tfdq.robustness.statistics import wilson

    found = wilson(right, images)
    return {"accuracy": found.value, "low": found.low, "high": found.high, "images": images}


def attacked(content: bytes, x: np.ndarray, y: np.ndarray, like: Robust) -> Robust:
    """Return the accuracy of the file under an attack with its integer twin's gradients."""
    from tfdq.robustness import run_attack
    from tflite_export import IntegerTwin

    twin = IntegerTwin(content)
    standing = np.ones(len(y), bool)
    for name in like.attacks:
        options: dict[str, Any] = {"steps": TWIN_PGD_STEPS} if name == "pgd" else {}
        standing &= ~run_attack(name, twin, x, y, like.eps / 255, seed=0, **options).success
    return like.model_copy(update=share(int(standing.sum()), len(y)))


def certified(content: bytes, x: np.ndarray, y: np.ndarray) -> tuple[Certified, ...]:
    """Return the accuracy that intervals on the integers prove, at 1 to 4 of 255."""
    import tfdq

    proof = tfdq.certify(content, x, y, norm="linf", max_steps=_CERTIFIED_STEPS)
    found = []
    for eps in range(1, _CERTIFIED_STEPS + 1):
        right = round(proof.certified_accuracy(eps / 255) * len(y))
        found.append(Certified(eps=eps, **share(right, len(y))))
    return tuple(found)
