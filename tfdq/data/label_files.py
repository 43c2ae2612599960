"""Names of classes in files: a text file, or the one that travels in a ``.tflite`` file."""

from __future__ import annotations

import zipfile
from pathlib import Path

_MOST_BYTES = 1 << 20


def read_labels(path: Path) -> tuple[str, ...]:
    """Return the names in a text file, one a line; empty lines are passed over.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is larger than 1 MiB, no UTF-8 text, or holds no name.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: give a text file, one class a line.")
    with path.open("rb") as file:
        return _names(file.read(_MOST_BYTES + 1), str(path))


def labels_in_model_file(path: Path) -> tuple[str, ...]:
    """Return the names in the text file that TFLite Metadata packs behind a model.

    It is a zip archive at the end of the file. Without one, or without exactly one ``.txt`` in it,
    no names are known, and the result is empty.

    Raises:
        ValueError: The archive is damaged, or its text is larger than 1 MiB or no UTF-8.
    """
    if not zipfile.is_zipfile(path):
        return ()
    try:
        with zipfile.ZipFile(path) as archive:
            found = [entry for entry in archive.infolist() if entry.filename.endswith(".txt")]
            if len(found) != 1:
                return ()
            with archive.open(found[0]) as file:
                content = file.read(_MOST_BYTES + 1)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, EOFError) as error:
        raise ValueError(
            f"{path}: the labels packed behind the model can't be read ({error}): give them as a "
            "text file (command line: --labels)."
        ) from error
    return _names(content, f"{path}, {found[0].filename}")


def _names(content: bytes, where: str) -> tuple[str, ...]:
    if len(content) > _MOST_BYTES:
        raise ValueError(f"{where} has more than {_MOST_BYTES:,} bytes: it is no list of classes.")
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is no UTF-8 text ({error}).") from error
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise ValueError(f"{where} is empty: write one class a line.")
    return names
