"""Bilinear resizing of single images in NumPy, with antialiasing."""

from __future__ import annotations

from functools import lru_cache

import numpy as np


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return an image in another size, as `tf.image.resize(antialias=True)` and Pillow do.

    Args:
        image: uint8, shape `(h, w, channels)`.
        height: Of the result, at least 1.
        width: Of the result, at least 1.

    Returns:
        uint8, shape `(height, width, channels)`, rounded to the nearest byte.
    """
    rows, columns = _weights(image.shape[0], height), _weights(image.shape[1], width)
    mixed = np.einsum("ih,hwc,jw->ijc", rows, image.astype(np.float32), columns, optimize=True)
    return np.clip(np.round(mixed), 0, 255).astype(np.uint8)


@lru_cache(maxsize=1024)
def _weights(given: int, wanted: int) -> np.ndarray:
    """Return the share of each given pixel in each wanted one, float32 `(wanted, given)`.

    A triangle around the centre of the wanted pixel, as wide as one given pixel on either side, or
    as one wanted pixel where the image shrinks.
    """
    step = given / wanted
    centres = (np.arange(wanted) + 0.5) * step
    distances = np.abs(np.arange(given) + 0.5 - centres[:, None]) / max(step, 1.0)
    shares = np.maximum(1.0 - distances, 0.0)
    return (shares / shares.sum(1, keepdims=True)).astype(np.float32)
