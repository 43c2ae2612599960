"""What a data set is here: uint8 images and integer labels, in memory, checked once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np


# Compared by identity: arrays have no single truth value.
@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """A labelled image data set with a training and a test part.

    Images are bytes, `0..255`; models take `x / 255` in [0, 1], so an attack's `eps` of `8/255`
    is 8 steps of a byte. Grey images given without a channel axis get one, labels given as a
    column are flattened and stored as int64.

    Attributes:
        x_train: uint8, shape `(n, height, width, channels)`.
        y_train: int64, shape `(n,)`, values in `0..classes - 1`.
        x_test: uint8, shape `(m, height, width, channels)`.
        y_test: int64, shape `(m,)`.
        classes: Number of classes, at least 2.
        name: How results made with it are to be called, for example `"cifar10"`.
        source: Where the images came from and what was done to them, one line.
        class_names: One name per class, or empty where the source has none.
        track_train: int64, shape `(n,)`: training images with one number show the same thing
            (frames of one traffic sign), and `held_out` keeps them together. None where each
            stands for itself.

    Raises:
        ValueError: If shapes, types or labels do not fit together; says which and what to do.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: int
    name: str
    source: str
    class_names: tuple[str, ...] = ()
    track_train: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Check the arrays and bring them to their canonical shape and type."""
        if self.classes < 2:
            raise ValueError(f"{self.name}: classes is {self.classes}, but must be at least 2.")
        if self.class_names and len(self.class_names) != self.classes:
            raise ValueError(
                f"{self.name}: there are {len(self.class_names)} class names for "
                f"{self.classes} classes."
            )
        for part in ("train", "test"):
            x = _images(getattr(self, f"x_{part}"), f"{self.name}: x_{part}")
            y = _labels(getattr(self, f"y_{part}"), f"{self.name}: y_{part}", self.classes)
            if len(x) != len(y):
                raise ValueError(
                    f"{self.name}: x_{part} has {len(x)} images, but y_{part} {len(y)} labels."
                )
            # The dataclass is frozen; this is the one place that writes its fields.
            object.__setattr__(self, f"x_{part}", x)
            object.__setattr__(self, f"y_{part}", y)
        if self.track_train is not None:
            tracks = np.asarray(self.track_train)
            if tracks.shape != self.y_train.shape or not np.issubdtype(tracks.dtype, np.integer):
                raise ValueError(
                    f"{self.name}: track_train is {tracks.dtype} of shape {tracks.shape}, but must "
                    f"hold an integer for each of the {len(self.y_train)} training images."
                )
            pairs = np.unique(np.stack([tracks, self.y_train]), axis=1)
            if len(np.unique(tracks)) < pairs.shape[1]:
                raise ValueError(
                    f"{self.name}: images of one track have different labels: number the tracks "
                    "over all classes, or correct the labels."
                )
            object.__setattr__(self, "track_train", tracks.astype(np.int64))
        if self.x_train.shape[1:] != self.x_test.shape[1:]:
            raise ValueError(
                f"{self.name}: training images are {self.x_train.shape[1:]}, but test images "
                f"{self.x_test.shape[1:]}: both parts need one shape."
            )

    def __repr__(self) -> str:
        """What it is, in a line; the arrays are long."""
        shape = "x".join(map(str, self.input_shape))
        return (
            f"Dataset({self.name!r}: {len(self.y_train)} training and {len(self.y_test)} test "
            f"images, {shape}, {self.classes} classes)"
        )

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one image, `(height, width, channels)`, as the model builders take it."""
        height, width, channels = self.x_train.shape[1:]
        return height, width, channels

    def subset(self, train: int | None = None, test: int | None = None, seed: int = 0) -> Dataset:
        """Return a data set with fewer images, drawn at random with the classes in proportion.

        Args:
            train: Number of training images, or None for all.
            test: Number of test images, or None for all.
            seed: Seed of the draw; the same seed gives the same images.

        Raises:
            ValueError: If a number is below 1 or above what there is.
        """
        changes: dict[str, Any] = {}
        notes = []
        for part, count in (("train", train), ("test", test)):
            x, y = getattr(self, f"x_{part}"), getattr(self, f"y_{part}")
            if count is None or count == len(y):
                continue
            if not 1 <= count < len(y):
                raise ValueError(
                    f"{self.name}: {count} {part} images were asked for, but there are {len(y)}."
                )
            chosen = draw_stratified(y, count, seed)
            changes |= {f"x_{part}": x[chosen], f"y_{part}": y[chosen]}
            if part == "train" and self.track_train is not None:
                changes["track_train"] = self.track_train[chosen]
            notes.append(f"{count} of {len(y)} {part} images (seed {seed})")
        if not notes:
            return self
        return replace(self, **changes, source=f"{self.source}; {', '.join(notes)}")

    def held_out(self, share: float = 0.1, seed: int = 0) -> Dataset:
        """Return the training images alone, a share of them as the test part.

        For what must not see the test images: early stopping, choosing settings. Of each class the
        same share is drawn, and images of one track (`track_train`) are never parted: frames of
        one traffic sign on both sides would make the held-out figure that of memory.

        Args:
            share: Of the training images that become the test part, in (0, 1).
            seed: Seed of the draw; the same seed gives the same images.

        Returns:
            A data set whose test part has about that share of each class, in whole tracks, at
            least one of each class that has more than one.

        Raises:
            ValueError: If the share is out of range or holds out nothing.
        """
        if not 0 < share < 1:
            raise ValueError(f"share of held-out images must be in (0, 1), got {share!r}.")
        single = self.track_train is None
        tracks = np.arange(len(self.y_train)) if single else self.track_train
        held = draw_tracks(self.y_train, np.asarray(tracks), share, seed)
        if not held.any():
            raise ValueError(
                f"{self.name}: nothing can be held out, as no class has more than one "
                f"{'image' if single else 'track'}: use more training images."
            )
        return replace(
            self,
            x_train=self.x_train[~held],
            y_train=self.y_train[~held],
            x_test=self.x_train[held],
            y_test=self.y_train[held],
            track_train=None if single else np.asarray(tracks)[~held],
            source=f"{self.source}; {held.sum()} of {len(held)} training images held out for tests "
            f"(seed {seed})",
        )

    def padded(self, size: int) -> Dataset:
        """Return the data set with its images centred on a black square of `size` x `size`.

        For models whose strides want other sizes (Fashion-MNIST's 28x28 to VGG-16's 32x32).
        Unlike resizing it leaves every pixel value as it is.

        Raises:
            ValueError: If an image is larger than the square.
        """
        height, width, _ = self.input_shape
        if size < max(height, width):
            raise ValueError(f"{self.name}: {height}x{width} images do not fit {size}x{size}.")
        if (height, width) == (size, size):
            return self
        top, left = (size - height) // 2, (size - width) // 2
        border = ((0, 0), (top, size - height - top), (left, size - width - left), (0, 0))
        return replace(
            self,
            x_train=np.pad(self.x_train, border),
            x_test=np.pad(self.x_test, border),
            source=f"{self.source}; padded to {size}x{size}",
        )

    def in_order(self, names: Sequence[str], whose: str) -> Dataset:
        """Return the same images with the classes numbered as in `names`.

        Args:
            names: The class of each output of a model, in the order of the outputs.
            whose: What gives the names, for the message.

        Raises:
            ValueError: The data set has no names, or they are not those given.
        """
        if not self.class_names:
            raise ValueError(
                f"{self.name} has no names of classes to compare with those of {whose}: its "
                "labels are taken as the numbers of the outputs."
            )
        if len(names) != self.classes or len(set(names)) != len(names):
            raise ValueError(
                f"{whose} names {len(names)} classes ({len(set(names))} different ones), but "
                f"{self.name} has {self.classes}."
            )
        unknown = sorted(set(names) - set(self.class_names))
        missing = sorted(set(self.class_names) - set(names))
        if unknown:
            raise ValueError(
                f"{whose} names {', '.join(unknown[:5])}, but the classes of {self.name} are "
                f"called {', '.join(missing[:5])}: rename the folders, or the "
                "lines of the file given as --labels."
            )
        place = np.array([list(names).index(name) for name in self.class_names])
        return replace(
            self,
            y_train=place[self.y_train],
            y_test=place[self.y_test],
            class_names=tuple(names),
        )

    def reversed_channels(self) -> Dataset:
        """Return the images with their channels in the other order, BGR for RGB; grey as it is."""
        if self.input_shape[2] == 1:
            return self
        return replace(
            self,
            x_train=self.x_train[..., ::-1],
            x_test=self.x_test[..., ::-1],
            source=f"{self.source}; channels in the order BGR",
        )


def draw_stratified(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Draw `count` indices with the classes in proportion (largest remainders), sorted.

    Args:
        labels: Shape `(n,)`, values from 0.
        count: How many to draw, `0..n`.
        seed: Seed of the draw.

    Returns:
        int64 indices into `labels`, ascending, shape `(count,)`.
    """
    rng = np.random.default_rng(seed)
    # A random order, then stably by class: every class is a contiguous, shuffled run.
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    sizes = np.bincount(labels)
    exact = sizes * count / len(labels)
    take = np.floor(exact).astype(np.int64)
    remainder = np.argsort(take - exact, kind="stable")[: count - take.sum()]
    take[remainder] += 1
    starts = np.cumsum(sizes) - sizes
    return np.sort(np.concatenate([order[s : s + k] for s, k in zip(starts, take, strict=True)]))


def draw_tracks(labels: np.ndarray, tracks: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Draw whole tracks until each class has its share of images.

    A track is added as long as that brings the number of images nearer to the share; a class
    with more than one track gives one at least and keeps one at least.

    Args:
        labels: Shape `(n,)`, values from 0.
        tracks: Shape `(n,)`, integers; images of one track have one label.
        share: Of the images of each class, in (0, 1).
        seed: Seed of the draw.

    Returns:
        bool, shape `(n,)`: whether an image is drawn.
    """
    rng = np.random.default_rng(seed)
    drawn = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        of_class = labels == label
        numbers, sizes = np.unique(tracks[of_class], return_counts=True)
        order = rng.permutation(len(numbers))
        # As many images as one, two ... tracks hold; the last track always stays.
        held = np.cumsum(sizes[order])[:-1]
        if len(held):
            count = int(np.argmin(np.abs(held - share * sizes.sum()))) + 1
            drawn |= of_class & np.isin(tracks, numbers[order[:count]])
    return drawn


def _images(x: np.ndarray, what: str) -> np.ndarray:
    """Return images as uint8 `(n, height, width, channels)`, or raise a ValueError."""
    x = np.asarray(x)
    if x.ndim == 3:
        x = x[..., np.newaxis]
    if x.ndim != 4 or 0 in x.shape:
        raise ValueError(
            f"{what} has shape {x.shape}, but must be (images, height, width, channels) "
            "or (images, height, width), none of them 0."
        )
    if x.dtype == np.uint8:
        return np.ascontiguousarray(x)
    if np.issubdtype(x.dtype, np.integer):
        if x.min() < 0 or x.max() > 255:
            raise ValueError(f"{what} has values {x.min()}..{x.max()}, but pixels are 0..255.")
        return x.astype(np.uint8)
    raise ValueError(
        f"{what} is {x.dtype}, but images are bytes (uint8, 0..255): for floats in [0, 1] "
        "store np.round(x * 255).astype(np.uint8)."
    )


def _labels(y: np.ndarray, what: str, classes: int) -> np.ndarray:
    """Return labels as int64 `(n,)`, or raise a ValueError."""
    y = np.asarray(y)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        raise ValueError(
            f"{what} is {y.dtype} of shape {y.shape}, but labels are integers of shape (images,): "
            "for one-hot labels store y.argmax(axis=1)."
        )
    if len(y) and (y.min() < 0 or y.max() >= classes):
        raise ValueError(
            f"{what} has labels {y.min()}..{y.max()}, but {classes} classes are 0..{classes - 1}."
        )
    return y.astype(np.int64)
