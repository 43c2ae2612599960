"""Measure the figures of a card again, from its file alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfdq.zoo.cards import find_card
from tfdq.zoo.measures import activation_bits, attacked, certified

_TOLERANCE = 0.02


@dataclass(frozen=True)
class Finding:
    """One figure of a card, checked again.

    Attributes:
        what: which figure.
        recorded: in the card.
        found: now.
        good: whether they agree.
    """

    what: str
    recorded: Any
    found: Any
    good: bool


def check(
    name: str,
    folder: Path | None = None,
    data_dir: Path | None = None,
    tell: Callable[[str], None] = lambda note: None,
) -> list[Finding]:
    """Measure the figures of a card again, from the file alone.

    Digest, size, integers only, bits and the clean accuracy must be the same; accuracy under
    attacks on the integer twin may differ by 2 points (other machines round gradients otherwise);
    proven accuracy must not be lower. What was measured with the trained network's gradients is
    not repeated: it needs that network, which the card's command makes.

    Args:
        name: of the card.
        folder: with the cards; None: those that come with the package.
        data_dir: where TFDS data sets are prepared.
        tell: called with a note as it goes on.
    """
    from tfdq.experiments.measuring import evaluation_images
    from tfdq.experiments.networks import load_images
    from tflite_export import Interpreter, integer_only

    card, path = find_card(name, folder)
    content = path.read_bytes()
    found = [
        _same("SHA-256", card.sha256, hashlib.sha256(content).hexdigest()),
        _same("bytes", card.bytes, len(content)),
    ]
    if not found[0].good:
        return found
    model = Interpreter(content)
    bits = card.settings.quantization
    found.append(_same("integer only", True, bool(integer_only(content))))
    found.append(_same("activation bits", bits.activation_bits, activation_bits(model.graph)))
    settings = card.settings.data.model_copy(update={"dir": data_dir})
    dataset = load_images(settings.model_copy(update={"train_images": None}))
    tell("clean accuracy")
    x, y = evaluation_images(dataset, card.clean.images)
    right = int((model.predict(x).argmax(-1) == y).sum())
    found.append(_same("clean accuracy", card.clean.accuracy, right / len(y)))
    for figure in card.robust:
        if figure.gradients == "integer twin":
            tell(f"{', '.join(figure.attacks)} at {figure.eps:g}/255")
            again = attacked(content, x[: figure.images], y[: figure.images], figure)
            good = abs(again.accuracy - figure.accuracy) <= _TOLERANCE
            what = f"{', '.join(figure.attacks)} at {figure.eps:g}/255 on the twin"
            found.append(Finding(what, figure.accuracy, again.accuracy, good))
    if card.certified:
        tell("proven accuracy")
        count = card.certified[0].images
        again_proven = certified(content, x[:count], y[:count])
        for proven in card.certified:
            share = next(c.accuracy for c in again_proven if c.eps == proven.eps)
            what = f"proven accuracy at {proven.eps:g}/255"
            found.append(Finding(what, proven.accuracy, share, share >= proven.accuracy - 1e-9))
    return found


def _same(what: str, recorded: Any, found: Any) -> Finding:
    return Finding(what, recorded, found, recorded == found)
