"""Finished examples of a certification, in a file that a later run continues from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt


class Record:
    """Results by example, in memory and in a file of JSON lines.

    Args:
        path: the file; what an earlier run with the same settings and images finished is read from
            it. None: nothing is kept.
        kind: what the results are of, for messages: ``"randomized smoothing"``.
        settings: what the results depend on, as JSON holds it.
        images: the examples.
        fields: what each result has beside its index.

    Raises:
        ValueError: the file is no such record, or belongs to another run.
    """

    def __init__(
        self,
        path: str | Path | None,
        kind: str,
        settings: dict[str, Any],
        images: npt.NDArray[np.float32],
        fields: Sequence[str] = (),
    ) -> None:
        self.results: dict[int, dict[str, Any]] = {}
        self._file: TextIO | None = None
        if path is None:
            return
        path = Path(path)
        digest = hashlib.sha256(np.ascontiguousarray(images).tobytes()).hexdigest()
        header = {"settings": settings, "images": digest}
        if path.exists() and path.stat().st_size:
            self._load(path, kind, header, fields)
        self._file = path.open("a", encoding="utf-8")
        if not path.stat().st_size:
            self._write(header)

    def _load(self, path: Path, kind: str, header: dict[str, Any], fields: Sequence[str]) -> None:
        """Read what an earlier run finished; a line cut off by a crash is dropped."""
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        if lines and not lines[-1].endswith("\n"):
            path.write_text("".join(lines[:-1]), encoding="utf-8")
            lines = lines[:-1]
        if not lines:
            return
        try:
            first, *rest = (json.loads(line) for line in lines)
            self.results = {row["index"]: row for row in rest}
            lacking = [name for name in fields if any(name not in row for row in rest)]
            if lacking:
                raise ValueError(f"a result lacks {', '.join(lacking)}")
        except (LookupError, RecursionError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a record of {kind}: {error}") from error
        if first != header:
            raise ValueError(
                f"{path} belongs to another run (other settings or images): give another file, or "
                "remove it to start again"
            )

    def _write(self, row: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()

    def add(self, row: dict[str, Any]) -> None:
        """Keep a finished example, ``{"index": its number, ...}``."""
        self.results[row["index"]] = row
        self._write(row)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
