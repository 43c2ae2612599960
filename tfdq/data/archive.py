"""Data sets in NumPy's .npz files."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tfdq.data.dataset import Dataset

_ARRAYS = ("x_train", "y_train", "x_test", "y_test")


def load_npz(path: Path) -> Dataset:
    """Read a data set from an .npz file with `x_train`, `y_train`, `x_test` and `y_test`.

    An optional array `class_names` (strings) names the classes. Pickled objects are refused: a
    file from elsewhere can't run code.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not an .npz file, lacks an array, or an array does not fit.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file {path}: np.savez_compressed(path, x_train=..., y_train=..., "
            "x_test=..., y_test=...) makes one."
        )
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not an .npz file, or is cut off: make it again.")
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [name for name in _ARRAYS if name not in archive.files]
            if missing:
                raise ValueError(
                    f"{path} has no {', '.join(missing)}: it must hold {', '.join(_ARRAYS)} "
                    f"(it holds {', '.join(archive.files) or 'nothing'})."
                )
            wanted = [*_ARRAYS, *(["class_names"] if "class_names" in archive.files else [])]
            arrays = {name: _read(archive, name, path) for name in wanted}
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise ValueError(f"{path} is not a readable .npz file ({error}).") from error
    class_names = tuple(str(name) for name in arrays.pop("class_names", ()))
    classes = len(class_names) or _count_classes(arrays)
    return Dataset(
        **arrays,
        classes=classes,
        name=path.stem,
        source=f"arrays of {path.name}",
        class_names=class_names,
    )


def _read(archive: Mapping[str, np.ndarray], name: str, path: Path) -> np.ndarray:
    """Return one array; a ValueError names it where NumPy's would not."""
    try:
        return archive[name]
    except ValueError as error:
        raise ValueError(f"{path}: the array {name} can't be read ({error}).") from error


def _count_classes(arrays: dict[str, np.ndarray]) -> int:
    """Return the largest label plus 1, at least 2; the labels themselves are checked later."""
    labels = [arrays[name] for name in ("y_train", "y_test")]
    largest = [int(y.max()) for y in labels if y.size and np.issubdtype(y.dtype, np.integer)]
    return max([1, *largest]) + 1
