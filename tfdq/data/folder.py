"""Data sets as folders of image files, one folder per class."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np

from tfdq.data.dataset import Dataset, draw_stratified
from tfdq.data.image_headers import DamagedImageError
from tfdq.data.image_headers import image_size as image_size_of
from tfdq.which_keras import installed

_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif")
_TEST_NAMES = ("test", "val", "validation")
_SPLIT_SEED = 0
# Of red, green and blue: ITU-R 601-2.
_LUMA = np.array([[0.2989], [0.5870], [0.1140]], np.float32)
# Of one image: 8192x8192 pixels, which are 192 MiB decoded.
_MOST_PIXELS = 1 << 26
_MOST_BYTES = 1 << 28


def load_folder(
    path: Path, image_size: tuple[int, ...] | None = None, resize: str = "stretch"
) -> Dataset:
    """Read a folder of images, `train/CLASS/*` and `test/CLASS/*`, or `CLASS/*`.

    The test part may also be called `val` or `validation`. Without it a fifth of every class,
    drawn with a fixed seed, is the test part. Classes are numbered in the order of their names.
    Hidden files are passed over; transparency is dropped; grey images stay grey if all are. Only
    regular files, and links to them, are read, of at most 256 MiB and 2^26 pixels each.

    TensorFlow decodes the files, or Pillow where it is not installed: the same bytes but for JPEG,
    which Pillow decodes more exactly, so that some differ by a few steps; `source` then says so.

    Args:
        path: The folder.
        image_size: `(height, width)` to resize to, bilinear with antialiasing; needed where the
            images differ in size. `(height, width, channels)` makes all of them grey (1) or
            colour (3), too.
        resize: `"stretch"`, or `"shorter-side"`: the shorter side gets its size, and the middle is
            cut out.

    Raises:
        ValueError: If the layout, a file, or the sizes do not fit; names what and what to do.
    """
    if image_size is not None and (
        len(image_size) not in (2, 3)
        or min(image_size) < 1
        or image_size[2:] not in ((), (1,), (3,))
    ):
        raise ValueError(
            f"image_size is {image_size}, but must be (height, width), at least 1, or (height, "
            "width, channels) with 1 or 3 channels."
        )
    train = path / "train"
    test = next((path / name for name in _TEST_NAMES if (path / name).is_dir()), None)
    if train.is_dir() and test is None:
        raise ValueError(f"{path} has a folder train but none called {', '.join(_TEST_NAMES)}.")
    parts = [train, test] if train.is_dir() and test is not None else [path]
    class_names = _subfolders(parts[0])
    if len(class_names) < 2:
        loose = sum(child.suffix.lower() in _ENDINGS for child in parts[0].iterdir())
        beside = f" and {loose} images beside them" if loose else ""
        raise ValueError(
            f"{parts[0]} has {len(class_names)} folders{beside}, but must have one per class, at "
            "least 2."
        )
    files: list[Path] = []
    labels: list[int] = []
    counts = []
    for part in parts:
        if _subfolders(part) != class_names:
            odd = sorted(set(_subfolders(part)) ^ set(class_names))
            raise ValueError(f"{parts[0]} and {part} differ in their classes: {', '.join(odd)}.")
        for label, name in enumerate(class_names):
            images = _image_files(part / name)
            files += images
            labels += [label] * len(images)
        counts.append(len(files))
    _check_memory(_check_images(files), image_size)
    x = _decode(files, image_size, resize)
    y = np.array(labels, np.int64)
    is_test = np.zeros(len(y), bool)
    if len(parts) == 2:
        is_test[counts[0] :] = True
        how = ""
    else:
        is_test[draw_stratified(y, max(1, len(y) // 5), _SPLIT_SEED)] = True
        how = f"; a fifth of every class is the test part, seed {_SPLIT_SEED}"
    return Dataset(
        x_train=x[~is_test],
        y_train=y[~is_test],
        x_test=x[is_test],
        y_test=y[is_test],
        classes=len(class_names),
        name=path.resolve().name,
        source=f"image folder {path.resolve().name}"
        + (f", resized to {'x'.join(map(str, image_size))}" if image_size else "")
        + (" by the shorter side" if image_size and resize == "shorter-side" else "")
        + _decoder(files)
        + how,
        class_names=tuple(class_names),
    )


def _subfolders(folder: Path) -> list[str]:
    """Return the names of the visible folders inside, sorted."""
    return sorted(
        child.name
        for child in folder.iterdir()
        if child.is_dir() and not child.name.startswith(".")
    )


def _image_files(folder: Path) -> list[Path]:
    """Return the images of one class, sorted by name."""
    visible = sorted(child for child in folder.iterdir() if not child.name.startswith("."))
    odd = [child.name for child in visible if child.suffix.lower() not in _ENDINGS]
    if odd:
        more = f" and {len(odd) - 5} more" if len(odd) > 5 else ""
        raise ValueError(
            f"{folder} holds {', '.join(odd[:5])}{more}: move them away, or convert them to one "
            f"of {', '.join(_ENDINGS)}."
        )
    if not visible:
        raise ValueError(f"{folder} is empty: a class needs images.")
    return visible


def _check_images(files: list[Path]) -> list[tuple[int, int] | None]:
    """Check that all are regular files, small enough to decode; none is decoded.

    Returns:
        Height and width of each; None where its first bytes do not say, and decoding will.

    Raises:
        ValueError: One is a folder, a device, a pipe or a link to nowhere, or too large.
    """
    sizes = []
    for file in files:
        _check_regular(file)
        size = image_size_of(file)
        if size is not None and size[0] * size[1] > _MOST_PIXELS:
            raise ValueError(
                f"{file} has {size[0]}x{size[1]} pixels, but at most {_MOST_PIXELS:,} are read of "
                "one image: make it smaller first."
            )
        sizes.append(size)
    return sizes


def _check_regular(file: Path) -> None:
    """Raise a ValueError for what is no regular file, or a very large one; opens nothing.

    Opening a pipe would wait for ever, and a device may have no end. Links to files are taken.
    """
    try:
        found = file.stat()
    except OSError as error:
        if not file.is_symlink():
            raise
        raise ValueError(
            f"{file} is a link that leads to no file ({error.strerror}): remove it."
        ) from error
    if not stat.S_ISREG(found.st_mode):
        kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))
        kind = next((name for check, name in kinds if check(found.st_mode)), "a device")
        raise ValueError(f"{file} is {kind}, no image file: move it away.")
    if found.st_size > _MOST_BYTES:
        raise ValueError(
            f"{file} has {found.st_size / 2**20:,.0f} MiB, but at most {_MOST_BYTES >> 20} are "
            "read of one image: make it smaller first."
        )


def _check_memory(sizes: list[tuple[int, int] | None], image_size: tuple[int, ...] | None) -> None:
    """Refuse images that would not fit into memory, before one is decoded.

    Args:
        sizes: Height and width of each; None where unknown.
        image_size: What they are resized to; None for their own sizes.
    """
    count = len(sizes)
    if image_size is None:
        known = [height * width * 3 for height, width in filter(None, sizes)]
        needed, of = sum(known), ""
    else:
        needed, of = count * image_size[0] * image_size[1] * 3, "x".join(map(str, image_size[:2]))
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise ValueError(
            f"{count} images{f' of {of}' if of else ''} are {needed / 2**30:,.0f} GiB, "
            f"but this machine has {there / 2**30:,.0f}: give a smaller image_size (command line: "
            "--image-size)."
        )


def _decode(files: list[Path], image_size: tuple[int, ...] | None, resize: str) -> np.ndarray:
    """Return the images, uint8 `(n, height, width, 1 or 3)`, in the order of the files."""
    if installed("tensorflow"):
        from tfdq.data.decoding_with_tensorflow import decoded
    else:
        from tfdq.data.decoding_with_pillow import decoded
    images: list[np.ndarray] = []
    try:
        for image in decoded(files, None if image_size is None else image_size[:2], resize):
            images.append(image)
    except DamagedImageError as error:
        raise ValueError(
            f"{files[len(images)]} is not a readable image: it is damaged, or of another kind than "
            f"{', '.join(_ENDINGS)}; replace it, or move it away."
        ) from error
    sizes = sorted({image.shape[:2] for image in images})
    if len(sizes) > 1:
        raise ValueError(
            f"the images differ in size, from {sizes[0]} to {sizes[-1]}: give image_size "
            "(height, width) to resize them (command line: --image-size)."
        )
    channels = max(image.shape[2] for image in images)
    if image_size is not None and len(image_size) == 3:
        channels = image_size[2]
    if channels == 3:
        images = [np.broadcast_to(image, (*image.shape[:2], 3)) for image in images]
    else:
        images = [_grey(image) for image in images]
    return np.stack(images)


def _decoder(files: list[Path]) -> str:
    """Return what the pixels of JPEG files depend on, as the source of a data set says it."""
    by_pillow = not installed("tensorflow") and any(
        file.suffix.lower() in (".jpg", ".jpeg") for file in files
    )
    return ", JPEG decoded by Pillow" if by_pillow else ""


def _grey(image: np.ndarray) -> np.ndarray:
    """Return an image, uint8 `(height, width, 1 or 3)`, with the luma of its colours alone."""
    if image.shape[2] == 1:
        return image
    # As tf.image.rgb_to_grayscale, bit for bit.
    luma = image.astype(np.float32) * np.float32(1 / 255) @ _LUMA
    return (luma * np.float32(255.5)).astype(np.uint8)
