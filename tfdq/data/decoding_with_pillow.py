"""Decode image files with Pillow, where TensorFlow is not installed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tfdq.data.image_headers import DamagedImageError
from tfdq.data.resampling import resized

_KINDS = ("PNG", "JPEG", "BMP", "GIF")
_GREY = ("1", "L", "LA")


def decoded(
    files: Sequence[Path], image_size: tuple[int, ...] | None, resize: str
) -> Iterator[np.ndarray]:
    """Return images in the order of the files, uint8 `(height, width, 1 or 3)`.

    Args:
        files: PNG, JPEG, BMP and GIF files; of several images in one the first is taken.
        image_size: `(height, width)` to resize to, bilinear with antialiasing; None: none is.
        resize: `"stretch"`, or `"shorter-side"`: the middle is cut out.

    Raises:
        DamagedImageError: The next file is none that can be decoded.
    """
    for file in files:
        image = _read(file)
        if image_size is not None:
            image = _fitted(image, image_size[0], image_size[1], resize)
        yield image


def _read(file: Path) -> np.ndarray:
    """Return an image without its transparency, uint8 `(height, width, 1 or 3)`."""
    try:
        with Image.open(file, formats=_KINDS) as image:
            if image.mode.startswith("I"):
                # 16 bits; the upper 8 are taken, as TensorFlow takes them.
                return (np.asarray(image, np.uint32) >> 8).astype(np.uint8)[..., None]
            if image.mode in _GREY and image.format != "GIF":
                return np.asarray(image.convert("L"))[..., None]
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise DamagedImageError(str(error)) from error


def _fitted(image: np.ndarray, height: int, width: int, resize: str) -> np.ndarray:
    rows, columns = height, width
    if resize == "shorter-side":
        given = np.array(image.shape[:2], np.float64)
        sides = np.round(given * np.max([height, width] / given)).astype(int)
        rows, columns = max(int(sides[0]), height), max(int(sides[1]), width)
    image = resized(image, rows, columns)
    top, left = (rows - height) // 2, (columns - width) // 2
    return image[top : top + height, left : left + width]
