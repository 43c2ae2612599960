"""How many batches one pass over a data set takes."""

from __future__ import annotations

from typing import Literal

import numpy as np

from tfdq.data.dataset import Dataset


def steps_per_epoch(
    dataset: Dataset,
    batch_size: int,
    split: Literal["train", "test"] = "train",
    drop_remainder: bool | None = None,
) -> int:
    """Return the number of batches `pipeline` makes of one pass over the data.

    Args:
        dataset: The data set.
        batch_size: Images per (global) batch.
        split: `"train"` or `"test"`.
        drop_remainder: As for `pipeline`: by default True for training only.

    Raises:
        ValueError: If an argument is out of range, or the batch larger than the training data.
    """
    count = len(images_of(dataset, split)[1])
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size is {batch_size!r}, but must be an integer of at least 1.")
    if drop_remainder is None:
        drop_remainder = split == "train"
    steps = count // batch_size if drop_remainder else -(-count // batch_size)
    if steps == 0:
        raise ValueError(
            f"batch_size is {batch_size}, but {dataset.name} has only {count} {split} images: "
            "lower it (command line: --batch-size)."
        )
    return steps


def images_of(dataset: Dataset, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images and labels of one part of the data set."""
    if split == "train":
        return dataset.x_train, dataset.y_train
    if split == "test":
        return dataset.x_test, dataset.y_test
    raise ValueError(f'split is {split!r}, but must be "train" or "test".')
