"""Batches for training and evaluation: a tf.data pipeline that is a function of its seed.

Which images a batch holds, in which order, how they are shifted and flipped: all of it is computed
from the seed and the number of the step, nothing from earlier steps. So two runs with one seed
see the same batches, a run that was stopped goes on with the batch it was at (`start_step`), and
workers that each take their slice of every batch (`shard`) together see what one machine would.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import tensorflow as tf

from tfdq.data.dataset import Dataset
from tfdq.data.steps import images_of, steps_per_epoch

Augment = Literal["none", "pad_crop", "pad_crop_flip"]

_AUGMENTS = ("none", "pad_crop", "pad_crop_flip")


def pipeline(
    dataset: Dataset,
    batch_size: int,
    augment: Augment = "none",
    seed: int = 0,
    shuffle: bool | None = None,
    *,
    split: Literal["train", "test"] = "train",
    epochs: int | None = None,
    start_step: int = 0,
    drop_remainder: bool | None = None,
    shard: tuple[int, int] = (0, 1),
    cutout: int = 0,
) -> tf.data.Dataset:
    """Return batches `(images, labels)` of a data set, ready for `model.fit` or `evaluate`.

    For training the stream does not end, each pass in a new order: give `fit` the number of
    steps, `steps_per_epoch=steps_per_epoch(dataset, batch_size)`. Images stay in memory as
    bytes; batches are made in parallel ahead of the training step, and come in one fixed order.

    Args:
        dataset: The data set.
        batch_size: Images per batch; over all workers together if the stream is sharded.
        augment: `"none"`; `"pad_crop"`: black pixels on every side, an eighth of the image's size
            (4 at 32x32), then a random crop of that size; `"pad_crop_flip"`: mirrored left to
            right with probability 1/2, too. The paper's is the last; digits and house numbers
            must not be mirrored.
        seed: Seed of order and augmentation, `0..2**31 - 1`.
        shuffle: A new random order in every epoch; by default for `split="train"` only.
        split: `"train"` or `"test"`.
        epochs: Number of passes, or None for an endless stream; by default (None) one pass for
            `split="test"`.
        start_step: Number of batches to leave out at the start, at no cost: where a stopped run
            goes on.
        drop_remainder: Leave out the images after the last full batch of an epoch (others in
            each, if shuffled); by default for `split="train"` only.
        shard: `(index, count)`: only this worker's `batch_size / count` images of every batch,
            for `strategy.distribute_datasets_from_function`. Not needed with `model.fit`, which
            splits the batches itself.
        cutout: Side of a black square around a random pixel of each image, in pixels, of which
            what lies outside the image is lost (DeVries and Taylor 2017: 16 on CIFAR-10); 0: none.

    Returns:
        A `tf.data.Dataset` of images, float32 in [0, 1], shape `(batch, height, width,
        channels)`, and labels, int64, shape `(batch,)`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> digits = tfdq.data.load("digits")
        >>> batches = pipeline(digits, 64, seed=1)
        >>> model.fit(batches, epochs=5, steps_per_epoch=steps_per_epoch(digits, 64))
    """
    if augment not in _AUGMENTS:
        raise ValueError(f"augment is {augment!r}, but must be one of {', '.join(_AUGMENTS)}.")
    if not 0 <= seed < 2**31:
        raise ValueError(f"seed is {seed!r}, but must be in 0..2**31 - 1.")
    images, labels = images_of(dataset, split)
    if drop_remainder is None:
        drop_remainder = split == "train"
    if shuffle is None:
        shuffle = split == "train"
    if epochs is None and split == "test":
        epochs = 1
    steps = steps_per_epoch(dataset, batch_size, split, drop_remainder)
    if epochs is not None and epochs < 1:
        raise ValueError(f"epochs is {epochs!r}, but must be at least 1, or None for no end.")
    if start_step < 0 or (epochs is not None and start_step > steps * epochs):
        raise ValueError(
            f"start_step is {start_step}, but must be at least 0 and at most the number of "
            f"batches ({'endless' if epochs is None else steps * epochs})."
        )
    if isinstance(cutout, bool) or not isinstance(cutout, int) or cutout < 0:
        raise ValueError(
            f"cutout is {cutout!r}, but must be the side of a square in pixels, at least 0."
        )
    rows = _shard_rows(batch_size, shard)

    # On the CPU, whatever the default device: a data set does not belong in a GPU's memory.
    with tf.device("CPU:0"):
        x, y = tf.constant(images), tf.constant(labels)

    def batch(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        epoch, within = step // steps, step % steps
        positions = within * batch_size + tf.range(*rows, dtype=tf.int64)
        if not drop_remainder:
            positions = positions[positions < len(labels)]
        chosen = _permute(positions, epoch, seed, len(labels)) if shuffle else positions
        pixels = tf.gather(x, chosen)

        def draw(key: int, numbers: int) -> tf.Tensor:
            # Drawn for the whole batch, whichever slice this is.
            return tf.random.stateless_uniform(
                [batch_size, numbers], (key, step), 0, 2**31 - 1, tf.int32, alg="philox"
            )[rows[0] : rows[1]][: tf.shape(positions)[0]]

        if augment != "none":
            pixels = _pad_crop(pixels, draw(seed, 3), flip=augment == "pad_crop_flip")
        if cutout:
            # No seed is as large: squares and shifts are drawn apart.
            pixels = _cut_out(pixels, draw(seed + 2**31, 2), cutout)
        pixels = tf.cast(pixels, tf.float32) / 255.0
        if drop_remainder:
            pixels = tf.ensure_shape(pixels, (rows[1] - rows[0], *images.shape[1:]))
        else:
            pixels = tf.ensure_shape(pixels, (None, *images.shape[1:]))
        return pixels, tf.gather(y, chosen)

    # An endless stream is a range that no run reaches the end of: its length stays known.
    stop = steps * epochs if epochs is not None else np.iinfo(np.int64).max // batch_size
    batches = tf.data.Dataset.range(start_step, stop).map(
        batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )
    if epochs is None:
        batches = batches.apply(
            tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
        )
    options = tf.data.Options()
    # Batches are made, not read from files: workers split them by number.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return batches.with_options(options).prefetch(tf.data.AUTOTUNE)


def _shard_rows(batch_size: int, shard: tuple[int, int]) -> tuple[int, int]:
    """Return first and last-but-one row of a worker's slice of every batch."""
    index, count = shard
    if not 0 <= index < count:
        raise ValueError(f"shard is {shard}, but must be (index, count) with 0 <= index < count.")
    if batch_size % count:
        raise ValueError(
            f"batch_size is {batch_size}, but must be a multiple of the {count} shards."
        )
    size = batch_size // count
    return index * size, (index + 1) * size


def _permute(positions: tf.Tensor, epoch: tf.Tensor, seed: int, count: int) -> tf.Tensor:
    """Return the images at the given positions of an epoch's random order.

    The order is never written down: a block cipher maps positions to images, one by one. With
    4 rounds and (seed, epoch) as its key, as `tf.random.experimental.index_shuffle` has it, the
    first of 8 images comes up to 1.4 times too often; with a random key and 8 rounds counts are
    those of true permutations.
    """
    # Negative numbers of epochs: the augmentation draws by (seed, step), from 0.
    key = tf.random.stateless_uniform(
        [3], tf.stack([tf.constant(seed, tf.int64), -1 - epoch]), None, None, tf.int32, "philox"
    )
    return tf.raw_ops.RandomIndexShuffle(
        index=positions, seed=key, max_index=tf.constant(count - 1, tf.int64), rounds=8
    )


def _pad_crop(pixels: tf.Tensor, draws: tf.Tensor, flip: bool) -> tf.Tensor:
    """Shift images by up to an eighth of their size, filling with black, and mirror half of them.

    One gather of rows and one of columns from the padded batch: column `j` of the result is
    column `left + j` of the padded image, `left + width - 1 - j` where the image is mirrored.

    Args:
        pixels: uint8, shape `(batch, height, width, channels)`.
        draws: Random numbers for each image's vertical and horizontal shift and its mirroring,
            int32 from 0, shape `(batch, 3)`.
        flip: Whether to mirror.
    """
    height, width = pixels.shape[1:3]
    pad = -(-max(height, width) // 8)
    shifts = draws[:, :2] % (2 * pad + 1)
    top, left = shifts[:, :1], shifts[:, 1:]
    rows = top + tf.range(height)
    columns = left + tf.range(width)
    if flip:
        mirrored = draws[:, 2:] % 2 == 1
        columns = tf.where(mirrored, left + width - 1 - tf.range(width), columns)
    padded = tf.pad(pixels, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    shifted = tf.gather(padded, rows, axis=1, batch_dims=1)
    return tf.gather(shifted, columns, axis=2, batch_dims=1)


def _cut_out(pixels: tf.Tensor, draws: tf.Tensor, side: int) -> tf.Tensor:
    """Blacken a square around a pixel of each image.

    Args:
        pixels: uint8, shape `(batch, height, width, channels)`.
        draws: Random numbers for each centre's row and column, int32 from 0, shape `(batch, 2)`.
        side: Of the square.
    """
    height, width = pixels.shape[1:3]

    def covered(centre: tf.Tensor, length: int) -> tf.Tensor:
        first = centre[:, None] - side // 2
        return (tf.range(length) >= first) & (tf.range(length) < first + side)

    rows, columns = covered(draws[:, 0] % height, height), covered(draws[:, 1] % width, width)
    inside = rows[:, :, None, None] & columns[:, None, :, None]
    return tf.where(inside, tf.zeros((), pixels.dtype), pixels)
