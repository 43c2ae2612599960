"""Data sets that TFDS (tensorflow_datasets) has prepared, or is to download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from tfdq.data.dataset import Dataset

# Every data set here is published as exact PNG; a prepared copy in JPEG is another data set.
_JPEG_START = b"\xff\xd8\xff"


def load_prepared(name: str, data_dir: Path | None, download: bool) -> Dataset:
    """Read a TFDS data set, any prepared version of it, into memory.

    Args:
        name: TFDS name; the suffix `+extra` adds the split of that name to the training part.
        data_dir: TFDS folder, or None for TFDS's default.
        download: Download and prepare the data set when it is not there.

    Returns:
        The data set in the order of its files. A copy whose images were recompressed as JPEG is
        named so: its figures are not those of the published data set.

    Raises:
        FileNotFoundError: If it is not prepared; says what to run.
        ValueError: If the prepared files are damaged.
    """
    base, _, extra = name.partition("+")
    root = Path(tfds.core.constants.DATA_DIR) if data_dir is None else data_dir
    folder = _newest_version(root / base)
    if folder is None and download:
        _download(base, root)
        folder = _newest_version(root / base)
    if folder is None:
        raise FileNotFoundError(
            f"{base} is not prepared in {root}: run `tfds build {base} --data_dir {root}` "
            "(it downloads the data), or give the folder where it is as --data-dir (data_dir=)."
        )
    builder = tfds.builder_from_directory(folder)
    splits = ["train", "test"] + ([extra] if extra else [])
    absent = [split for split in splits if split not in builder.info.splits]
    if absent:
        raise FileNotFoundError(
            f"{folder} has no split {', '.join(absent)}: remove the folder and run "
            f"`tfds build {base} --data_dir {root}`."
        )
    x_train, y_train = _read(builder, "train")
    x_test, y_test = _read(builder, "test")
    if extra:
        x_extra, y_extra = _read(builder, extra)
        x_train, y_train = np.concatenate([x_train, x_extra]), np.concatenate([y_train, y_extra])
    label = builder.info.features["label"]
    recompressed = _is_jpeg(builder)
    return Dataset(
        x_train,
        y_train,
        x_test,
        y_test,
        classes=label.num_classes,
        name=f"{name} (JPEG copy)" if recompressed else name,
        source=f"TFDS {base}/{builder.version}"
        + (f", {'+'.join(['train', extra])} split" if extra else "")
        + (", images recompressed as JPEG" if recompressed else ""),
        class_names=tuple(label.names or ()),
    )


def _newest_version(folder: Path) -> Path | None:
    """Return the prepared version with the highest number, or None."""
    versions = [
        child
        for child in (folder.iterdir() if folder.is_dir() else ())
        if (child / "dataset_info.json").is_file() and child.name.replace(".", "").isdigit()
    ]
    return max(versions, key=lambda child: tuple(map(int, child.name.split("."))), default=None)


def _download(name: str, root: Path) -> None:
    """Let TFDS download and prepare a data set, and say what to do if it can't."""
    try:
        tfds.builder(name, data_dir=root).download_and_prepare()
    except Exception as error:
        # TFDS passes on whatever its readers and the network raise; each means the same to us.
        raise FileNotFoundError(
            f"{name} could not be downloaded ({type(error).__name__}: {error}). On a machine with "
            f"access to the network run `tfds build {name} --data_dir DIR`, copy DIR here, and "
            "give it as --data-dir (data_dir=)."
        ) from error


def _read(builder: Any, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the images, uint8 `(n, height, width, channels)`, and labels of one split."""
    count = builder.info.splits[split].num_examples
    images = np.empty((count, *builder.info.features["image"].shape), np.uint8)
    labels = np.empty(count, np.int64)
    # One file at a time: the order is the files', whatever the number of cores.
    config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
    batches = builder.as_dataset(split=split, shuffle_files=False, read_config=config).batch(1024)
    start = 0
    try:
        for batch in batches.prefetch(2).as_numpy_iterator():
            stop = start + len(batch["label"])
            images[start:stop] = batch["image"]
            labels[start:stop] = batch["label"]
            start = stop
    except tf.errors.OpError as error:
        # Cut or damaged files, or not as many images as the folder's metadata states.
        reason = error.message.splitlines()[0]
        raise ValueError(
            f"split {split} in {builder.data_path} can't be read ({reason}): remove the folder "
            "and prepare the data set again."
        ) from error
    return images, labels


def _is_jpeg(builder: Any) -> bool:
    """Tell whether the images are stored as JPEG, by the first bytes of the first one."""
    raw = builder.as_dataset(
        split="test", shuffle_files=False, decoders={"image": tfds.decode.SkipDecoding()}
    )
    first = next(iter(raw.take(1)))
    return bytes(first["image"].numpy()[:3]) == _JPEG_START
