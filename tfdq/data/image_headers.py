"""The size of an image file, read off its first bytes: known before anything is decoded."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

# Of a JPEG, the markers of a frame's header: all of C0..CF but those of tables.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Markers that stand alone, without a length.
_BARE = frozenset({0x01, *range(0xD0, 0xD9)})
_MOST_MARKERS = 10_000


class DamagedImageError(ValueError):
    """A file is none of the images that are decoded, or is damaged."""


def image_size(path: Path) -> tuple[int, int] | None:
    """Return height and width as a PNG, JPEG, BMP or GIF file states them.

    Args:
        path: the file.

    Returns:
        Both in pixels; None if the file is of another kind, or is cut off.
    """
    with path.open("rb") as file:
        start = file.read(26)
        if start.startswith(b"\x89PNG\r\n\x1a\n") and len(start) >= 24:
            return _number(start[20:24]), _number(start[16:20])
        if start[:6] in (b"GIF87a", b"GIF89a") and len(start) >= 10:
            return _number(start[8:10], "little"), _number(start[6:8], "little")
        if start.startswith(b"BM") and len(start) >= 26:
            height, width = (_number(start[at : at + 4], "little") for at in (22, 18))
            # Negative where the rows go from the top down.
            return min(height, 2**32 - height), min(width, 2**32 - width)
        if start.startswith(b"\xff\xd8"):
            file.seek(2)
            return _jpeg_size(file)
    return None


def _jpeg_size(file: BinaryIO) -> tuple[int, int] | None:
    """Go from marker to marker until a frame's header."""
    for _ in range(_MOST_MARKERS):
        start, marker = file.read(1), file.read(1)
        if start != b"\xff" or not marker:
            return None
        if marker == b"\xff":  # a fill byte
            file.seek(-1, 1)
            continue
        if marker[0] in _BARE:
            continue
        length = _number(file.read(2))
        if length < 2:
            return None
        if marker[0] in _FRAMES:
            frame = file.read(5)
            return (_number(frame[1:3]), _number(frame[3:5])) if len(frame) == 5 else None
        file.seek(length - 2, 1)
    return None


def _number(field: bytes, order: str = "big") -> int:
    return int.from_bytes(field, "little" if order == "little" else "big")
