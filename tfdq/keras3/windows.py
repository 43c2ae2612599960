"""The number of windows that fit an image."""

from __future__ import annotations


def window_count(
    size: int | None, window: int, stride: int, dilation: int, padding: str
) -> int | None:
    """Return how many windows fit one dimension; None where its size is not known.

    Args:
        size: of the dimension.
        window: size of the window.
        stride: distance of two windows.
        dilation: distance of two pixels of a window.
        padding: ``"valid"`` or ``"same"``.
    """
    if size is None:
        return None
    if padding == "same":
        return -(-size // stride)
    return (size - (window - 1) * dilation - 1) // stride + 1
