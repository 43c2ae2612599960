"""JSON damaged in every place: what a reader of files is to refuse by the file's name, or take."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

ODD: tuple[Any, ...] = (None, 7, "x", [], {}, [[3]], {"a": "b"})


def damaged_texts(text: str) -> list[str]:
    """Return what is no JSON any more, or none that holds an object."""
    return ["", text[: len(text) // 2], "[" * 100_000, "[1]", "null", "\x00", '"x"']


def damaged(content: Any, count: int, seed: int = 0) -> Iterator[Any]:
    """Yield copies of a JSON value, an entry missing or replaced in each.

    Args:
        content: the value.
        count: how many copies; entries near the top come up most often.
        seed: of the draw.
    """
    generator = np.random.default_rng(seed)
    for number in range(count):
        made = copy.deepcopy(content)
        at = made
        for _ in range(int(generator.integers(0, 7))):
            keys = list(at) if isinstance(at, dict) else range(len(at))
            inner = [key for key in keys if isinstance(at[key], (dict, list)) and at[key]]
            if not inner:
                break
            at = at[inner[generator.integers(len(inner))]]
        keys = list(at) if isinstance(at, dict) else range(len(at))
        key = keys[generator.integers(len(keys))]
        if number % 3 == 0:
            del at[key]
        else:
            at[key] = ODD[generator.integers(len(ODD))]
        yield made


def refusals(content: Any, count: int, read: Callable[[str], object], message: str) -> int:
    """Let a reader try damaged copies; return how many it refused.

    Args:
        content: a JSON value that the reader takes.
        count: how many copies; `damaged_texts` come besides.
        read: the reader, of a text. It may raise a ValueError, and nothing else.
        message: what that must say.
    """
    found = 0
    texts = [json.dumps(copied) for copied in damaged(content, count)]
    for text in [*texts, *damaged_texts(json.dumps(content))]:
        try:
            read(text)
        except ValueError as error:
            found += 1
            if message not in str(error):
                raise AssertionError(f"{message!r} is not in {str(error)!r}") from error
    return found
