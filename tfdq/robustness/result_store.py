"""Finished pieces of a long computation on disk, found again by a hash of what was computed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfdq.mistakes import WrongTypeError
from tfdq.robustness.json_files import Entries, text_of


class ResultStore:
    """A folder with one small JSON file per finished piece.

    A piece is named by the SHA-256 of its settings, so changed settings never meet an old result.
    Files appear whole or not at all (written aside, flushed, renamed), so a run that is killed at
    any moment is resumed by running it again; two runs in one folder at worst do a piece twice.

    Args:
        folder: Where to keep the pieces; made if it does not exist. None keeps nothing.

    Raises:
        OSError: If the folder can't be made or written to.
    """

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        self.folder = None if folder is None else Path(folder)
        self.found = 0
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not os.access(self.folder, os.W_OK):
                raise PermissionError(f"cannot write results to {self.folder}: choose another one")

    def get(self, settings: Mapping[str, Any], entries: Entries) -> dict[str, Any] | None:
        """Return the piece that was computed with these settings, or None.

        A file that can't be read as such a piece counts as absent, with a warning.

        Args:
            settings: What the piece depends on.
            entries: Names that its result must have, with the types of their values.
        """
        path = self._path(settings)
        if path is None or not path.exists():
            return None
        try:
            piece = json.loads(text_of(path))
            same = piece["settings"] == json.loads(_canonical(settings))
            result = piece["result"]
            odd = [name for name, kind in entries.items() if not isinstance(result[name], kind)]
            if same and not odd:
                self.found += 1
                return result
            reason = f"its {', '.join(odd)} is of another kind" if same else "its settings differ"
        except (OSError, LookupError, RecursionError, TypeError, ValueError) as error:
            reason = f"no entry {error}" if isinstance(error, KeyError) else str(error)
        warnings.warn(f"not reusing {path}: {reason}; it is computed anew", stacklevel=2)
        return None

    def put(self, settings: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        """Keep a finished piece; the file appears whole or not at all.

        Raises:
            OSError: If the disk is full or the folder has become read-only. Pieces that were
                written earlier are untouched.
        """
        path = self._path(settings)
        if path is None:
            return
        piece = {"settings": json.loads(_canonical(settings)), "result": dict(result)}
        write_atomically(path, json.dumps(piece, indent=1) + "\n")

    def _path(self, settings: Mapping[str, Any]) -> Path | None:
        if self.folder is None:
            return None
        name = hashlib.sha256(_canonical(settings).encode()).hexdigest()[:32]
        return self.folder / f"{name}.json"


def write_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file so that it is the old one or the new one, never a part.

    Args:
        path: File to write; an existing one is replaced.
        text: Its new content, written as UTF-8.

    Raises:
        OSError: If it can't be written; an existing file is then untouched.
    """
    path = Path(path)
    # Not tempfile's: those only their owner can read.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def digest(*arrays: np.ndarray) -> str:
    """Return a short SHA-256 over the shapes, types and values of arrays."""
    state = hashlib.sha256()
    for array in arrays:
        state.update(f"{array.shape}{array.dtype.str}".encode())
        state.update(np.ascontiguousarray(array).data)
    return state.hexdigest()[:24]


def model_digest(model: Any) -> str | None:
    """Return a digest of what a model computes, or None if it can't be told from outside.

    Weights and structure of a Keras graph of layers, the bytes of a file. For anything else (a
    function, a subclassed model) the answers to the data have to serve.
    """
    if isinstance(model, (str, os.PathLike)):
        return hashlib.sha256(Path(model).read_bytes()).hexdigest()[:24]
    if type(model).__name__ not in ("Functional", "Sequential", "QuantizedModel"):
        return None
    config = json.dumps(model.get_config(), sort_keys=True, default=repr)
    # The default representation of an object holds its address, which is no property of it.
    config = re.sub(r" at 0x[0-9a-f]+", "", config)
    weights = digest(*(np.asarray(weight) for weight in model.get_weights()))
    return f"{weights}:{hashlib.sha256(config.encode()).hexdigest()[:24]}"


def _canonical(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return digest(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise WrongTypeError(
        f"a setting of type {type(value).__name__} can't be recorded with a result: use numbers, "
        "strings, lists, dictionaries or NumPy arrays"
    )
