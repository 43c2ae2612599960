"""Keep what compiled libraries print while they start away from the user's terminal.

TensorFlow and LiteRT write start-up notices to file descriptor 2 from compiled code, past Python
and past every setting.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


@contextmanager
def native_stderr_turned_away() -> Iterator[None]:
    """Send file descriptor 2 to nowhere while the block runs; Python's stderr gets a copy of it."""
    stream = sys.stderr
    stream.flush()
    try:
        kept = os.dup(2)
    except OSError:
        # Started with stderr closed: there is nothing to keep quiet.
        yield
        return
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    if _writes_to(stream, 2):
        sys.stderr = open(  # noqa: SIM115 (it lives as long as the block)
            kept,
            "w",
            buffering=1,
            encoding=stream.encoding,
            errors="backslashreplace",
            closefd=False,
        )
    try:
        yield
    finally:
        sys.stderr.flush()
        sys.stderr = stream
        os.dup2(kept, 2)
        os.close(kept)


def _writes_to(stream: TextIO, descriptor: int) -> bool:
    try:
        return stream.fileno() == descriptor
    except (OSError, ValueError):
        return False
