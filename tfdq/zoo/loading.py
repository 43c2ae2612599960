"""Load a file of the zoo with its card: to run it, and to attack it through its twin."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from tfdq.zoo.cards import Card, check_digest, find_card

if TYPE_CHECKING:
    from tflite_export import IntegerTwin, Interpreter


@dataclass(frozen=True)
class Entry:
    """A file of the zoo.

    Attributes:
        path: of the file.
        card: what is known of it.
        interpreter: runs it; images in [0, 1] go in.
    """

    path: Path
    card: Card
    interpreter: Interpreter

    @cached_property
    def twin(self) -> IntegerTwin:
        """The differentiable copy of the file, made at first use, on the backend of Keras."""
        from tflite_export import IntegerTwin

        return IntegerTwin(self.interpreter.graph)


def load(name: str, folder: Path | None = None) -> Entry:
    """Load a file of the zoo.

    Args:
        name: of its card; see ``tfdq zoo list``.
        folder: with files and cards; None: those that come with the package.

    Returns:
        Interpreter, twin and card. TensorFlow is not needed: the twin runs on the backend of Keras.

    Raises:
        ValueError: there is none of that name (says which names are close to it), or the file is
            not the one that its card describes.
        FileNotFoundError: the file is not beside its card.

    Example:
        >>> entry = tfdq.zoo.load("fashion-dq4")              # doctest: +SKIP
        >>> entry.interpreter.predict(images).argmax(-1)      # doctest: +SKIP
    """
    from tflite_export import Interpreter

    card, path = find_card(name, folder)
    content = path.read_bytes()
    check_digest(card, content, path)
    return Entry(path, card, Interpreter(content))
