"""Examples in batches, from arrays or a `tf.data.Dataset`, one batch in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tfdq.robustness.attacks.datasets import (
    check_finite,
    has_labels,
    is_dataset,
    is_unbatched,
)
from tfdq.robustness.attacks.inputs import checked_images_and_labels
from tfdq.robustness.attacks.ranges import as_clip

Batch = tuple[np.ndarray, np.ndarray]


def count_batches(x: Any, batch_size: int) -> int | None:
    """Return how many batches `iterate_batches` will give, or None if that is not known."""
    if not is_dataset(x):
        return -(-len(x) // batch_size)
    size = int(x.cardinality())
    if size < 0 or not has_labels(x):
        return None
    return -(-size // batch_size) if is_unbatched(x) else None


def iterate_batches(x: Any, y: Any, batch_size: int, clip: Any) -> Iterator[Batch]:
    """Yield images and labels, checked, one batch at a time.

    Args:
        x: Images, shape (n, ...), or a `tf.data.Dataset` of `(image, label)` pairs, batched or not.
            A finite one: it is read once.
        y: Labels, (n,) or one-hot (n, classes); None for a dataset.
        batch_size: Examples per batch; a dataset is cut anew to this size.
        clip: `(lo, hi)` that the images must lie in, each a number or one for each channel.

    Yields:
        Images, float32 (m, ...), and labels, int64 (m,); m is `batch_size` but for the last batch.

    Raises:
        ValueError: If images hold NaN or lie outside `clip`, labels are missing or of the wrong
            number, the dataset is empty or infinite.
        TypeError: If labels are no class numbers.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    limits = as_clip(clip)
    if not is_dataset(x):
        images, labels = np.asarray(x), y
        if labels is None:
            raise ValueError("y is None: pass the true labels")
        labels = np.asarray(labels)
        if len(images) != len(labels):
            raise ValueError(f"x has {len(images)} examples but y has {len(labels)} labels")
        if len(images) == 0:
            raise ValueError("x is empty: pass at least one example")
        for at in range(0, len(images), batch_size):
            part = slice(at, at + batch_size)
            yield checked_images_and_labels(images[part], labels[part], limits)
        return
    if y is not None:
        raise ValueError("x is a dataset and must hold the labels itself: pass y=None")
    if not has_labels(x):
        raise ValueError(f"the dataset must give (image, label), it gives {x.element_spec}")
    check_finite(x)
    cut = x.batch(batch_size) if is_unbatched(x) else x.rebatch(batch_size)
    empty = True
    for element in cut.as_numpy_iterator():
        empty = False
        yield checked_images_and_labels(element[0], element[1], limits)
    if empty:
        raise ValueError("the dataset is empty")
