"""What can be told of a `tf.data.Dataset` without reading it, and the reading of a whole one."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np


def is_dataset(x: Any) -> bool:
    """Return whether `x` is a `tf.data.Dataset`, without importing TensorFlow."""
    tensorflow = sys.modules.get("tensorflow")
    return tensorflow is not None and isinstance(x, tensorflow.data.Dataset)


def has_labels(dataset: Any) -> bool:
    """Return whether the elements are pairs (images, labels), or longer tuples."""
    return isinstance(dataset.element_spec, tuple) and len(dataset.element_spec) >= 2


def is_unbatched(dataset: Any) -> bool:
    """Return whether the elements are single examples with their labels.

    A label is then a scalar or a one-hot vector.

    Args:
        dataset: One that `has_labels`.
    """
    image, label = dataset.element_spec[0], dataset.element_spec[1]
    if label.shape.rank != 1:
        return label.shape.rank == 0
    return label.shape[0] is not None and label.shape[0] != image.shape[0]


def check_finite(dataset: Any) -> None:
    """Raise if a dataset has no end.

    Raises:
        ValueError: It is infinite.
    """
    if int(dataset.cardinality()) == -1:
        raise ValueError("the dataset is infinite: use dataset.take(n)")


def read_dataset(x: Any, y: Any) -> tuple[np.ndarray, Any]:
    """Return the images and labels of a whole dataset.

    Args:
        x: A finite dataset of batches of images, of (images, labels) batches, or of single
            (image, label) examples.
        y: The labels, where the dataset has none; else None.

    Returns:
        The images, [n, ...], and the labels, those given where the dataset has none.

    Raises:
        ValueError: The dataset is empty, infinite, or of another structure; it holds labels and
            `y` was given; it holds single images without labels.
    """
    check_finite(x)
    labelled = has_labels(x)
    if labelled and y is not None:
        raise ValueError("the dataset holds labels and y was given as well; pass y=None")
    spec = x.element_spec
    if not labelled and (isinstance(spec, (dict, tuple)) or not hasattr(spec, "shape")):
        raise ValueError(
            f"the dataset must give images or (images, labels), it gives {spec}; map it first: "
            'dataset.map(lambda e: (e["image"], e["label"]))'
        )
    if labelled and is_unbatched(x):
        x = x.batch(256)
    images: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    for element in x.as_numpy_iterator():
        if labelled:
            images.append(element[0])
            labels.append(element[1])
        else:
            images.append(element)
    if not images:
        raise ValueError("the dataset is empty")
    if labelled:
        return np.concatenate(images), np.concatenate(labels)
    single = y is not None and len(images) == len(y) != sum(map(len, images))
    if images[0].ndim < 2 or single:
        raise ValueError(
            f"the dataset gives single images of shape {images[0].shape}, not batches of them; use "
            "dataset.batch(n)"
        )
    return np.concatenate(images), y
