"""Data sets in NumPy's .npz files."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tfdq.data.dataset import Dataset

_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
_OPTIONAL = ("class_names", "track_train")
# Up to here a data set may have more classes than images, as a small part of a large one has.
_MANY_CLASSES = 1000


def load_npz(path: Path) -> Dataset:
    """Read a data set from an .npz file with `x_train`, `y_train`, `x_test` and `y_test`.

    Images are bytes, or int8, the integers of a network's input, which become bytes from the least
    one on. An optional array `class_names` (strings) names the classes; another, `track_train`
    (integers), says which training images show the same thing: those of one label and one number.
    Pickled objects are refused: a file from elsewhere can't run code.

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
    _check_memory(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [name for name in _ARRAYS if name not in archive.files]
            if missing:
                raise ValueError(
                    f"{path} has no {', '.join(missing)}: it must hold {', '.join(_ARRAYS)} "
                    f"(it holds {', '.join(archive.files) or 'nothing'})."
                )
            wanted = [*_ARRAYS, *(name for name in _OPTIONAL if name in archive.files)]
            arrays = {name: _read(archive, name, path) for name in wanted}
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise ValueError(f"{path} is not a readable .npz file ({error}).") from error
    for name in ("x_train", "x_test"):
        arrays[name] = _in_bytes(arrays[name])
    class_names = tuple(str(name) for name in arrays.pop("class_names", ()))
    if "track_train" in arrays:
        arrays["track_train"] = _numbered(arrays["y_train"], arrays["track_train"], path)
    classes = len(class_names) or _count_classes(arrays, path)
    return Dataset(
        **arrays,
        classes=classes,
        name=path.stem,
        source=f"arrays of {path.name}",
        class_names=class_names,
    )


def _check_memory(path: Path) -> None:
    """Refuse a file whose arrays would not fit into memory, before one is unpacked.

    Raises:
        ValueError: They would not.
    """
    try:
        with zipfile.ZipFile(path) as stored:
            needed = sum(entry.file_size for entry in stored.infolist())
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is not a readable .npz file ({error}).") from error
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise ValueError(
            f"{path} holds {needed / 2**30:,.0f} GiB of arrays, but this machine has "
            f"{there / 2**30:,.0f}: store fewer images, or uint8 in place of floats."
        )


def _read(archive: Mapping[str, np.ndarray], name: str, path: Path) -> np.ndarray:
    """Return one array; a ValueError names it where NumPy's would not."""
    try:
        return archive[name]
    except (MemoryError, ValueError) as error:
        raise ValueError(f"{path}: the array {name} can't be read ({error}).") from error


def _in_bytes(values: np.ndarray) -> np.ndarray:
    """Return int8, -128 to 127, as bytes from 0 on; anything else as it is."""
    return (values.view(np.uint8) ^ 0x80) if values.dtype == np.int8 else values


def _numbered(labels: np.ndarray, tracks: np.ndarray, path: Path) -> np.ndarray:
    """Return a number for each track, whether or not each class counts its own from 0.

    Raises:
        ValueError: there are not as many numbers as labels.
    """
    if tracks.shape != labels.shape:
        raise ValueError(
            f"{path}: track_train has shape {tracks.shape}, but y_train {labels.shape}: store one "
            "number for each training image."
        )
    pairs = np.stack([labels, tracks], axis=-1).reshape(-1, 2)
    return np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1)


def _count_classes(arrays: dict[str, np.ndarray], path: Path) -> int:
    """Return the largest label plus 1, at least 2; the labels themselves are checked later.

    Raises:
        ValueError: so many classes could not be told apart by the images there are.
    """
    labels = [arrays[name] for name in ("y_train", "y_test")]
    largest = [int(y.max()) for y in labels if y.size and np.issubdtype(y.dtype, np.integer)]
    classes = max([1, *largest]) + 1
    images = sum(y.size for y in labels)
    if classes > max(_MANY_CLASSES, images):
        raise ValueError(
            f"{path}: the largest label is {classes - 1}, which would make {classes} classes of "
            f"{images} images: number the classes 0, 1, 2 ... without gaps "
            "(np.unique(y, return_inverse=True) does), or give their names as class_names."
        )
    return classes
