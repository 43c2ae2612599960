"""What an attack is given, checked before any work is done."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfdq.mistakes import WrongTypeError
from tfdq.robustness.attacks.datasets import is_dataset, read_dataset
from tfdq.robustness.attacks.ranges import Extent, as_clip, as_extent, check_broadcast, shown


def checked_settings(
    name: str,
    norms: tuple[str, ...],
    eps: Any,
    norm: str,
    clip: Any,
    batch_size: int,
) -> tuple[Extent, tuple[Extent, Extent]]:
    """Returns radius and range as extents, or raises if the settings of an attack make no sense.

    Raises:
        ValueError: A negative or non-finite `eps`, a norm the attack does not work in, an `eps` for
            each channel in another norm than L_inf, an empty clip range, a batch size below 1;
            each named.
        TypeError: An `eps` or a `clip` that holds no numbers.
    """
    try:
        radius = as_extent(eps, "eps")
    except ValueError as error:
        raise ValueError(f"eps must be a finite number >= 0 in input units, got {eps}") from error
    if np.min(radius) < 0:
        raise ValueError(f"eps must be a finite number >= 0 in input units, got {eps}")
    if norm not in norms:
        raise ValueError(f"{name} works in {' and '.join(norms)}, not in norm {norm!r}")
    if norm != "linf" and not isinstance(radius, float):
        raise ValueError(
            f"an eps for each channel is a box, which is a ball of norm 'linf' only; in {norm!r} "
            f"give one number, got {shown(radius)}"
        )
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    return radius, as_clip(clip)


def checked_width(eps: Extent, clip: tuple[Extent, Extent]) -> None:
    """Raises if a radius is larger than the range of the images: 8 for 8/255, most likely.

    Raises:
        ValueError: Naming both.
    """
    width = np.subtract(clip[1], clip[0])
    try:
        too_large = bool(np.any(np.asarray(eps) > width))
    except ValueError as error:
        raise ValueError(
            f"eps has shape {np.shape(eps)}, but clip {np.shape(width)}: give one number for each "
            "channel"
        ) from error
    if too_large:
        raise ValueError(
            f"eps {shown(eps)} is more than images in [{shown(clip[0])}, {shown(clip[1])}] have; "
            f"did you mean {shown(eps)}/255, or another clip?"
        )


def checked_images_and_labels(
    x: Any, y: Any, clip: tuple[Extent, Extent]
) -> tuple[np.ndarray, np.ndarray]:
    """Images as float32 and labels as int64, from arrays or from a `tf.data.Dataset`.

    Args:
        x: Images [n, ...] or a dataset: of batches of images or of (images, labels), or of single
            (image, label) examples.
        y: Integer labels [n], one-hot labels [n, classes], or None if the dataset has them.
        clip: The range the images must lie in.

    Returns:
        Images, float32 [n, ...], and labels, int64 [n].

    Raises:
        ValueError: NaN or infinite images, images outside `clip`, missing labels, lengths that
            differ, an empty batch.
        TypeError: Labels that are neither class numbers nor one-hot.
    """
    if is_dataset(x):
        x, y = read_dataset(x, y)
    if y is None:
        raise ValueError(
            "y is None: pass the true labels (attacking the model's own predictions would count "
            "misclassified images as broken)"
        )
    images = np.asarray(x)
    if images.ndim < 2 or len(images) == 0:
        raise ValueError(f"x must be a batch of at least one image, got shape {images.shape}")
    if not (np.issubdtype(images.dtype, np.floating) or np.issubdtype(images.dtype, np.integer)):
        raise WrongTypeError(f"x must hold numbers, got dtype {images.dtype}")
    images = np.ascontiguousarray(images, dtype=np.float32)
    if not np.isfinite(images).all():
        raise ValueError("x holds NaN or infinite values; clean the images first")
    low, high = float(images.min()), float(images.max())
    for end in clip:
        check_broadcast(end, images.shape[1:], "clip")
    if (images < np.float32(clip[0])).any() or (images > np.float32(clip[1])).any():
        remedy = "declare the range of the images with clip=(low, high)"
        if low >= 0 and 2 < high <= 255:
            remedy = f"divide images of bytes by 255, or {remedy} where the model takes 0..255"
        raise ValueError(
            f"x reaches from {low:g} to {high:g}, outside clip=({shown(clip[0])}, "
            f"{shown(clip[1])}); {remedy}"
        )
    return images, _class_numbers(y, len(images))


def checked_label_range(labels: np.ndarray, classes: int, name: str) -> None:
    """Raises if a label is no class of the model.

    Raises:
        ValueError: Naming the labels and the classes there are.
    """
    if labels.size and (labels.min() < 0 or labels.max() >= classes):
        raise ValueError(
            f"labels must lie in 0..{classes - 1} ({name} has {classes} classes), "
            f"got {int(labels.min())}..{int(labels.max())}"
        )


def _class_numbers(y: Any, n: int) -> np.ndarray:
    labels = np.asarray(y)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if len(labels) != n if labels.ndim else True:
        raise ValueError(f"{n} images but labels of shape {labels.shape}")
    if labels.ndim == 2:
        one_hot = ((labels == 0) | (labels == 1)).all() and (labels.sum(axis=1) == 1).all()
        if not one_hot:
            raise WrongTypeError("labels of shape [n, classes] must be one-hot; got something else")
        return np.argmax(labels, axis=1)
    if labels.ndim != 1:
        raise ValueError(f"labels must have shape [n] or one-hot [n, classes], got {labels.shape}")
    if not np.issubdtype(labels.dtype, np.number) or not (labels == np.floor(labels)).all():
        raise WrongTypeError(f"labels must be class numbers, got {labels.dtype} values")
    labels = labels.astype(np.int64)
    if labels.min() < 0:
        raise ValueError(f"labels must be >= 0, got {int(labels.min())}")
    return labels
