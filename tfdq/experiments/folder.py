"""A run's folder: made, claimed for one process, written to without half-written files."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tfdq.robustness.json_files import read_json
from tfdq.robustness.result_store import write_atomically

_MARK = "tfdq-run.json"


class BusyError(ValueError):
    """Another process is writing to a folder."""


@contextmanager
def open_folder(path: str | Path, kind: str) -> Iterator[Path]:
    """Make or reopen the folder of a run and hold it while the block runs.

    Args:
        path: the folder; missing parents are made.
        kind: what writes it, such as ``"demo"``; a folder of another kind is refused.

    Yields:
        The folder, with ``models`` and ``plots`` in it.

    Raises:
        ValueError: the folder holds something else, or another process is writing to it.
        OSError: it can't be written.
    """
    path = join_folder(path, kind)
    for folder in (path / "models", path / "plots"):
        folder.mkdir(parents=True, exist_ok=True)
    with hold(path):
        yield path


def join_folder(path: str | Path, kind: str) -> Path:
    """Make or reopen a folder that several processes may write to.

    Args:
        path: the folder; missing parents are made.
        kind: what writes it; a folder of another kind is refused.

    Raises:
        ValueError: the folder holds something else.
        OSError: it can't be written.
    """
    path = Path(path)
    check_folder(path, kind)
    path.mkdir(parents=True, exist_ok=True)
    write_json(path / _MARK, {"kind": kind})
    return path


def check_folder(path: Path, kind: str) -> None:
    """Check that ``join_folder`` would take a folder; makes nothing.

    Raises:
        ValueError: the folder holds something else, or is no folder.
    """
    mark = path / _MARK
    if path.exists() and not path.is_dir():
        raise ValueError(f"{str(path)!r} is a file; give a folder")
    if mark.exists():
        found = read_json(
            mark,
            f"remove it with the folder, or write {json.dumps({'kind': kind})} into it if this is "
            f"a folder of `tfdq {kind}`",
            {"kind": str},
        )["kind"]
        if found != kind:
            raise ValueError(
                f"{str(path)!r} holds a run of `tfdq {found}`; give another folder with --out"
            )
    elif path.exists() and any(not _is_mark_to_be(entry) for entry in path.iterdir()):
        if mark.exists():
            # Another process has joined meanwhile.
            check_folder(path, kind)
            return
        raise ValueError(
            f"{str(path)!r} has files that tfdq did not write; give another folder with --out"
        )


def _is_mark_to_be(path: Path) -> bool:
    """Tell whether a file is the mark of a process that is writing it just now."""
    return path.name.startswith(f".{_MARK}.")


def folder_kind(path: Path) -> str | None:
    """Return what wrote a folder, such as ``"demo"``; None if tfdq did not, or it is a file.

    Raises:
        ValueError: the mark in it is damaged.
    """
    mark = path / _MARK
    if not mark.is_file():
        return None
    return read_json(mark, "name the models in the folder one by one", {"kind": str})["kind"]


@contextmanager
def hold(path: Path) -> Iterator[Path]:
    """Hold a folder while the block runs; it is made if it is not there.

    The hold ends with the process, however that ends.

    Raises:
        BusyError: another process holds it.
        OSError: it can't be written.
    """
    path.mkdir(parents=True, exist_ok=True)
    with (path / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(
                f"another process is writing to {str(path)!r}; wait for it, or give another "
                "folder with --out"
            ) from error
        yield path


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file so that it is the old one or the new one, never a part.

    Raises:
        OSError: the file can't be written; an existing one is then untouched.
    """
    write_atomically(path, json.dumps(content, indent=1, default=str) + "\n")
