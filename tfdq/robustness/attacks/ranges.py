"""Radii and ranges that are one number, or one for each channel of the images."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfdq.mistakes import WrongTypeError

Extent = float | np.ndarray
"""A number, or float64 numbers that broadcast over an image, such as `(channels,)`."""


def as_extent(value: Any, name: str) -> Extent:
    """Return a radius or an end of a range as a float, or as an array where channels differ.

    Args:
        value: A number, or an array or list that broadcasts over the images.
        name: What it is called in errors.

    Raises:
        ValueError: It is empty, or not finite.
        TypeError: It holds no numbers.
    """
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError) as error:
        raise WrongTypeError(
            f"{name} must be a number, or one for each channel, got {value!r}"
        ) from error
    if array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"{name} must hold finite numbers, got {value!r}")
    if (array == array.flat[0]).all():
        return float(array.flat[0])
    return array


def as_clip(clip: Any) -> tuple[Extent, Extent]:
    """Return the range of the images as two extents.

    Args:
        clip: `(low, high)`; each a number, or one for each channel.

    Raises:
        ValueError: They are not two, or no channel is left between them.
        TypeError: They hold no numbers.
    """
    if not hasattr(clip, "__len__") or len(clip) != 2:
        raise ValueError(f"clip must be (low, high) with low < high, got {clip!r}")
    low, high = as_extent(clip[0], "clip[0]"), as_extent(clip[1], "clip[1]")
    try:
        empty = np.any(np.asarray(low) >= np.asarray(high))
    except ValueError as error:
        raise ValueError(
            f"the ends of clip have shapes {np.shape(low)} and {np.shape(high)}: give both one "
            "number for each channel"
        ) from error
    if empty:
        raise ValueError(f"clip must be (low, high) with low < high, got {clip!r}")
    return low, high


def check_broadcast(extent: Extent, image: tuple[int, ...], name: str) -> None:
    """Raise if an extent has numbers for other channels than the images have.

    Args:
        extent: The extent.
        image: Shape of one image.
        name: What it is called in the error.

    Raises:
        ValueError: It does not broadcast over an image.
    """
    shape = np.shape(extent)
    try:
        fits = np.broadcast_shapes(shape, image) == tuple(image)
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"{name} has shape {shape}, which does not broadcast over images of shape "
            f"{tuple(image)}: give one number, or one for each channel ({image[-1]})"
        )


def largest(extent: Extent) -> float:
    """Return the largest of the numbers: what stands for a radius in tables and plots."""
    return float(np.max(extent))


def as_json(value: Any) -> Any:
    """Return a setting as JSON holds it: arrays as lists."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value.item() if isinstance(value, np.generic) else value


def shown(extent: Extent) -> str:
    """Return an extent in a few characters, for messages."""
    return f"{extent:g}" if isinstance(extent, float) else str(np.asarray(extent).tolist())
