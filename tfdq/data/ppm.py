"""Binary PPM images (P6), the format of the German Traffic Sign Recognition Benchmark."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

# Magic number, then width, height and the largest value; comments reach from "#" to the line's end.
_SPACE = rb"(?:\s|#[^\n]*\n)+"
_HEADER = re.compile(
    rb"P6" + _SPACE + rb"(\d{1,5})" + _SPACE + rb"(\d{1,5})" + _SPACE + rb"(\d{1,5})\s"
)


def read_ppm(path: Path) -> np.ndarray:
    """Return the pixels of a PPM image, uint8, shape `(height, width, 3)`, in the order RGB.

    Raises:
        ValueError: If it is no binary PPM of bytes, or is cut off.
    """
    content = path.read_bytes()
    header = _HEADER.match(content)
    if header is None or int(header[3]) != 255:
        raise ValueError(f"{path} is not a binary PPM image (P6) of bytes: replace it.")
    width, height = int(header[1]), int(header[2])
    pixels = content[header.end() :]
    if width * height == 0 or len(pixels) < 3 * width * height:
        raise ValueError(
            f"{path} states {height}x{width} pixels, but holds {len(pixels) // 3}: it is cut off; "
            "extract it again."
        )
    return np.frombuffer(pixels, np.uint8, 3 * width * height).reshape(height, width, 3)
