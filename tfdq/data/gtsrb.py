"""The German Traffic Sign Recognition Benchmark in the folders that it is published in."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tfdq.data.dataset import Dataset
from tfdq.data.ppm import read_ppm
from tfdq.data.resampling import resized

CLASSES = 43
DEFAULT_SIZE = (32, 32)
_TRAINING = ("Final_Training/Images", "Training")
_TEST = "Final_Test/Images"
_TEST_LABELS = "GT-final_test.csv"
_REGION = ("Roi.X1", "Roi.Y1", "Roi.X2", "Roi.Y2")


@dataclass(frozen=True)
class _Sign:
    """One annotated image."""

    file: Path
    region: tuple[int, int, int, int]
    """First column and row, last column and row of the sign."""
    label: int
    track: int
    """Number of the physical sign within its class; of test images, 0."""


def find_gtsrb(folder: Path) -> Path | None:
    """Return the folder `GTSRB`, the given one or one inside it, or None if there is none."""
    for candidate in (folder, folder / "GTSRB"):
        if (candidate / _TEST).is_dir() and _training_folder(candidate) is not None:
            return candidate
    return None


def load_gtsrb(
    folder: Path, image_size: tuple[int, ...] | None = None, region_only: bool = False
) -> Dataset:
    """Read the official training and test images.

    The layout is that of the published archives, unpacked in one place:
    `GTSRB/Final_Training/Images/CLASS/TRACK_FRAME.ppm` with `GT-CLASS.csv` beside them (or
    `GTSRB/Training/...`), `GTSRB/Final_Test/Images/*.ppm`, and `GT-final_test.csv`, the labels of
    the test images, beside these or in a folder above.

    Args:
        folder: `GTSRB`, or the folder that holds it.
        image_size: `(height, width)` to resize to, bilinear with antialiasing; 32x32 by default.
        region_only: Cut out the annotated region of interest, the sign without its surroundings.

    Returns:
        The data set; `track_train` says which images show one and the same sign.

    Raises:
        FileNotFoundError: If a folder, an annotation file or an image is missing.
        ValueError: If a file's content does not fit.
    """
    height, width = _checked_size(image_size)
    root = find_gtsrb(folder)
    if root is None:
        raise FileNotFoundError(
            f"{folder} has no folder GTSRB with {_TRAINING[0]} and {_TEST}: unpack "
            "GTSRB_Final_Training_Images.zip and GTSRB_Final_Test_Images.zip there, or give the "
            "folder where they are as --data-dir (data_dir=)."
        )
    train = list(_training_signs(root))
    test = list(_test_signs(root))
    x_train, x_test = (
        np.stack([_pixels(sign, height, width, region_only) for sign in part])
        for part in (train, test)
    )
    return Dataset(
        x_train,
        np.array([sign.label for sign in train]),
        x_test,
        np.array([sign.label for sign in test]),
        classes=CLASSES,
        name="gtsrb+roi" if region_only else "gtsrb",
        source=f"official images of GTSRB, {'regions of interest ' if region_only else ''}resized "
        f"to {height}x{width}",
        track_train=_numbered([(sign.label, sign.track) for sign in train]),
    )


def _checked_size(image_size: tuple[int, ...] | None) -> tuple[int, int]:
    height, width, *channels = DEFAULT_SIZE if image_size is None else image_size
    if min(height, width) < 1 or channels not in ([], [3]):
        raise ValueError(
            f"image_size is {image_size}, but must be (height, width), at least 1; the images of "
            "gtsrb are in colour."
        )
    return height, width


def _training_folder(root: Path) -> Path | None:
    return next((root / name for name in _TRAINING if (root / name).is_dir()), None)


def _training_signs(root: Path) -> Iterator[_Sign]:
    """Yield the training images, by class, track and frame."""
    parent = _training_folder(root)
    assert parent is not None
    folders = sorted(child for child in parent.iterdir() if child.is_dir())
    if not folders:
        raise FileNotFoundError(f"{parent} has no folders of classes: unpack the archive again.")
    for folder in folders:
        for row in _rows(folder / f"GT-{folder.name}.csv"):
            track = row["Filename"].split("_")[0]
            if not track.isdigit():
                raise ValueError(
                    f"{folder / row['Filename']} is not named TRACK_FRAME.ppm: without the number "
                    "of its track it can't be kept apart from other frames of the same sign."
                )
            yield _sign(folder, row, int(track))


def _test_signs(root: Path) -> Iterator[_Sign]:
    """Yield the test images in the order of their annotations."""
    images = root / _TEST
    places = [folder / _TEST_LABELS for folder in (images, images.parent, root, root.parent)]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"there is no {_TEST_LABELS} in {images} or above: unpack GTSRB_Final_Test_GT.zip "
            "there (GT-final_test.test.csv, which comes with the images, has no labels)."
        )
    for row in _rows(found):
        yield _sign(images, row, 0)


def _rows(path: Path) -> Iterator[dict[str, str]]:
    """Yield the lines of an annotation file by the names of its columns."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: unpack the archive again.")
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, delimiter=";")
        absent = {"Filename", "ClassId", *_REGION} - set(reader.fieldnames or ())
        if absent:
            raise ValueError(
                f"{path} has no column {', '.join(sorted(absent))}: it must be the published file, "
                "its columns parted by semicolons."
            )
        row = None
        for row in reader:
            yield row
        if row is None:
            raise ValueError(f"{path} has a header, but no annotations: unpack the archive again.")


def _sign(folder: Path, row: dict[str, str], track: int) -> _Sign:
    file = folder / row["Filename"]
    try:
        left, top, right, bottom, label = (int(row[name]) for name in (*_REGION, "ClassId"))
    except (TypeError, ValueError) as error:
        raise ValueError(f"the annotation of {file} is not made of whole numbers: {row}") from error
    return _Sign(file, (left, top, right, bottom), label, track)


def _pixels(sign: _Sign, height: int, width: int, region_only: bool) -> np.ndarray:
    """Return an image in its final size, uint8 `(height, width, 3)`."""
    try:
        image = read_ppm(sign.file)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"there is no image {sign.file}, which is annotated: unpack the archive again."
        ) from error
    if region_only:
        left, top, right, bottom = sign.region
        if not (0 <= left <= right < image.shape[1] and 0 <= top <= bottom < image.shape[0]):
            raise ValueError(
                f"the region {sign.region} of {sign.file} does not lie in its "
                f"{image.shape[0]}x{image.shape[1]} pixels: take the annotations of these images."
            )
        image = image[top : bottom + 1, left : right + 1]
    return resized(image, height, width)


def _numbered(tracks: list[tuple[int, int]]) -> np.ndarray:
    """Return a number for each different pair, int64 `(n,)`."""
    return np.unique(np.array(tracks), axis=0, return_inverse=True)[1].reshape(-1)
