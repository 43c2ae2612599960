"""Read the files of results, plain JSON or packed with xz."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

from tfdq.robustness.json_files import LARGEST

PACKED = ".xz"


def read_results_file(path: str | Path) -> Any:
    """Return the content of a JSON file of results.

    Args:
        path: `name.json`, or `name.json.xz`, packed by `xz`. Where only the packed form of
            `name.json` is there, it is read.

    Raises:
        FileNotFoundError: neither form is there.
        ValueError: the file is damaged, or holds more than 256 MiB.
    """
    path = Path(path)
    packed = path if path.suffix == PACKED else path.with_name(path.name + PACKED)
    if path != packed and path.is_file():
        if path.stat().st_size > LARGEST:
            raise ValueError(f"{str(path)!r} has more than {LARGEST >> 20} MiB")
        return _parse(path, path.read_bytes())
    if not packed.is_file():
        raise FileNotFoundError(f"there is no results file {str(path)!r}")
    try:
        with lzma.open(packed) as file:
            content = file.read(LARGEST + 1)
    except (lzma.LZMAError, EOFError) as error:
        raise ValueError(f"{str(packed)!r} is not a whole xz file: {error}") from error
    if len(content) > LARGEST:
        raise ValueError(f"{str(packed)!r} unpacks to more than {LARGEST >> 20} MiB")
    return _parse(packed, content)


def _parse(path: Path, content: bytes) -> Any:
    try:
        return json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is not JSON: {error}") from error
