"""IDX files, the format MNIST and Fashion-MNIST are published in."""

from __future__ import annotations

import gzip
import math
import struct
from pathlib import Path

import numpy as np

from tfdq.data.dataset import Dataset

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")

CLASS_NAMES = {
    "mnist": tuple("0123456789"),
    "fashion_mnist": (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
}

_FILES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}


def find_idx(folder: Path) -> dict[str, Path] | None:
    """Return the four IDX files of a folder by array name, or None unless all are there."""
    found = {}
    for key, stem in _FILES.items():
        for candidate in (folder / f"{stem}.gz", folder / stem):
            if candidate.is_file():
                found[key] = candidate
                break
    return found if len(found) == len(_FILES) else None


def load_idx(name: str, files: dict[str, Path]) -> Dataset:
    """Read MNIST or Fashion-MNIST from its four IDX files, as `find_idx` returns them."""
    arrays = {key: read_idx(path) for key, path in files.items()}
    return Dataset(
        **arrays,
        classes=10,
        name=name,
        source=f"IDX files in {files['x_train'].parent}",
        class_names=CLASS_NAMES[name],
    )


def read_idx(path: Path) -> np.ndarray:
    """Read one IDX file of unsigned bytes, plain or gzip-compressed.

    The format (LeCun et al., http://yann.lecun.com/exdb/mnist): two zero bytes, the type 0x08,
    the rank, one big-endian int32 per axis, then the values in C order.

    Returns:
        uint8 array of the shape the header states.

    Raises:
        ValueError: If the file is not IDX, not of bytes, or shorter or longer than it states.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as stream:
            header = stream.read(4)
            if len(header) < 4 or header[:3] != b"\0\0\x08" or not 1 <= header[3] <= 4:
                raise ValueError(f"{path} is not an IDX file of unsigned bytes.")
            rank = header[3]
            sizes = stream.read(4 * rank)
            if len(sizes) < 4 * rank:
                raise ValueError(f"{path} ends inside its header: fetch it again.")
            shape = struct.unpack(f">{rank}I", sizes)
            # One byte more than stated, so that a longer file is noticed without reading it all.
            values = stream.read(math.prod(shape) + 1)
    except (OSError, EOFError) as error:
        raise ValueError(f"{path} can't be read ({error}): fetch it again.") from error
    if len(values) != math.prod(shape):
        raise ValueError(f"{path} does not hold the {shape} bytes it states: fetch it again.")
    return np.frombuffer(values, np.uint8).reshape(shape)
