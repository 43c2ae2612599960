"""Training batches in NumPy: the order and the augmentation of `pipeline`, without TensorFlow.

As there, everything is a function of the seed and of the number of the step, so a run that was
stopped goes on with the batch it was at. Order and shifts are other draws than `pipeline`'s.
"""

from __future__ import annotations

import numpy as np

from tfdq.data.dataset import Dataset
from tfdq.data.steps import steps_per_epoch

AUGMENTS = ("none", "pad_crop", "pad_crop_flip")
# What is drawn with one seed is told apart by these.
_ORDER, _SHIFTS, _SQUARES = 0, 1, 2


class NumpyBatches:
    """The batches of a training, each found by its number.

    Args:
        dataset: The data set; its training images stay in memory as bytes.
        batch_size: Images per batch; what is left of an epoch after the last full one is left out.
        augment: `"none"`, `"pad_crop"` or `"pad_crop_flip"`, as for `pipeline`.
        seed: Seed of order and augmentation, at least 0.
        cutout: Side of a black square around a random pixel of each image, as for `pipeline`.

    Raises:
        ValueError: If an argument is out of range, or the batch larger than the training data.

    Example:
        >>> batches = NumpyBatches(tfdq.data.load("digits"), 64, seed=1)
        >>> images, labels = batches[0]
        >>> images.shape, images.dtype
        ((64, 8, 8, 1), dtype('float32'))
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        augment: str = "none",
        seed: int = 0,
        cutout: int = 0,
    ) -> None:
        if augment not in AUGMENTS:
            raise ValueError(f"augment is {augment!r}, but must be one of {', '.join(AUGMENTS)}.")
        if seed < 0:
            raise ValueError(f"seed is {seed!r}, but must be at least 0.")
        if isinstance(cutout, bool) or not isinstance(cutout, int) or cutout < 0:
            raise ValueError(
                f"cutout is {cutout!r}, but must be the side of a square in pixels, at least 0."
            )
        self.steps = steps_per_epoch(dataset, batch_size)
        self._x, self._y = dataset.x_train, dataset.y_train
        self._size, self._augment, self._seed = batch_size, augment, seed
        self._cutout = cutout
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def __getitem__(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the images and labels of a step, counted from the start of the training.

        Returns:
            Images, float32 in [0, 1], shape `(batch, height, width, channels)`, and labels, int64,
            shape `(batch,)`.
        """
        epoch, within = divmod(step, self.steps)
        chosen = self._order_of(epoch)[within * self._size : (within + 1) * self._size]
        pixels = self._x[chosen]
        if self._augment != "none":
            draw = np.random.default_rng((self._seed, _SHIFTS, step))
            pixels = _pad_crop(pixels, draw, flip=self._augment == "pad_crop_flip")
        if self._cutout:
            draw = np.random.default_rng((self._seed, _SQUARES, step))
            pixels = _cut_out(pixels, draw, self._cutout)
        return pixels.astype(np.float32) / np.float32(255), self._y[chosen].astype(np.int64)

    def _order_of(self, epoch: int) -> np.ndarray:
        if self._order[0] != epoch:
            draw = np.random.default_rng((self._seed, _ORDER, epoch))
            self._order = epoch, draw.permutation(len(self._y))
        return self._order[1]


def _pad_crop(pixels: np.ndarray, draw: np.random.Generator, flip: bool) -> np.ndarray:
    """Shift images by up to an eighth of their size, filling with black, and mirror half of them.

    Args:
        pixels: uint8, shape `(batch, height, width, channels)`.
        draw: Draws shifts and mirroring.
        flip: Whether to mirror.
    """
    count, height, width = pixels.shape[:3]
    pad = -(-max(height, width) // 8)
    top, left = draw.integers(0, 2 * pad + 1, (2, count, 1))
    rows, columns = top + np.arange(height), left + np.arange(width)
    if flip:
        mirrored = draw.integers(0, 2, (count, 1)) == 1
        columns = np.where(mirrored, columns[:, ::-1], columns)
    padded = np.pad(pixels, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    found: np.ndarray = padded[
        np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]
    ]
    return found


def _cut_out(pixels: np.ndarray, draw: np.random.Generator, side: int) -> np.ndarray:
    """Blacken a square around a pixel of each image; what lies outside the image is lost.

    Args:
        pixels: uint8, shape `(batch, height, width, channels)`.
        draw: Draws the pixels.
        side: Of the square.
    """
    count, height, width = pixels.shape[:3]

    def covered(length: int) -> np.ndarray:
        first = draw.integers(0, length, (count, 1)) - side // 2
        at = np.arange(length)
        found: np.ndarray = (at >= first) & (at < first + side)
        return found

    rows, columns = covered(height), covered(width)
    inside = rows[:, :, None, None] & columns[:, None, :, None]
    return np.where(inside, np.uint8(0), pixels)
