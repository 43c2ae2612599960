"""Read the JSON files that tfdq wrote; a damaged one is named, with what to do about it."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Entries = Mapping[str, type | tuple[type, ...]]
"""Names that an object must have, with the types of their values."""


LARGEST = 256 * 2**20
"""Bytes that a JSON file may have; the largest on record has 2 MiB."""


@contextmanager
def naming(source: Path | str, remedy: str) -> Iterator[None]:
    """Name the file where what it holds is not what the block expects of it.

    Args:
        source: the file that the block reads, or whose content it takes apart; or what to call a
            text that came without a file.
        remedy: what to do, an imperative clause.

    Raises:
        ValueError: the block failed for want of an entry, or on one of the wrong kind.
    """
    try:
        yield
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        reason = f"no entry {error}" if isinstance(error, KeyError) else str(error)
        called = source if isinstance(source, str) else repr(str(source))
        raise ValueError(f"{called} is damaged ({reason}): {remedy}") from error


def read_json(path: Path, remedy: str, entries: Entries | None = None) -> dict[str, Any]:
    """Return the content of a JSON file that holds an object.

    Args:
        path: the file.
        remedy: what to do where it is damaged, an imperative clause.
        entries: names that must be in it, with the types of their values.

    Raises:
        ValueError: it is no regular file, no JSON, holds no object, or lacks an entry.
        OSError: it can't be read.
    """
    with naming(path, remedy):
        content = json.loads(text_of(path))
        if not isinstance(content, dict):
            raise TypeError("it holds no object")
        for name, kind in (entries or {}).items():
            if not isinstance(content[name], kind):
                raise TypeError(f"{name!r} is {content[name]!r:.40}")
    return content


def text_of(path: Path) -> str:
    """Return the text of a file that has an end: pipes and devices are not opened.

    Raises:
        ValueError: it is no regular file, holds more than 256 MiB, or is no UTF-8.
        OSError: it can't be read.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is no regular file")
    if found.st_size > LARGEST:
        raise ValueError(f"it holds more than {LARGEST >> 20} MiB")
    return path.read_text(encoding="utf-8")
