"""Training batches in NumPy: what is in them, their order, augmentation and resuming."""

from __future__ import annotations

import numpy as np
import pytest

from tfdq.data import Dataset
from tfdq.data.numpy_batches import NumpyBatches


@pytest.fixture(scope="module")
def numbered() -> Dataset:
    """103 training images that carry their number in every pixel (0..102) and in the label."""
    numbers = np.arange(103)
    x = np.broadcast_to(numbers[:, None, None, None], (103, 6, 5, 2)).astype(np.uint8)
    return Dataset(x, numbers, x[:41], numbers[:41], 103, "numbered", "made up")


def test_an_epoch_holds_no_image_twice_and_the_next_has_another_order(numbered: Dataset) -> None:
    batches = NumpyBatches(numbered, 16)
    assert batches.steps == 6
    parts = [batches[step] for step in range(12)]
    x, y = (np.concatenate(part) for part in zip(*parts, strict=True))
    assert (x.dtype, y.dtype) == (np.float32, np.int64)
    pixels = (y.astype(np.float32) / np.float32(255))[:, None, None, None]
    np.testing.assert_array_equal(x, np.broadcast_to(pixels, x.shape))
    assert len(set(y[:96])) == len(set(y[96:])) == 96
    assert not np.array_equal(y[:96], y[96:])


@pytest.mark.parametrize("augment", ["none", "pad_crop_flip"])
def test_a_batch_depends_on_nothing_but_its_number_and_the_seed(
    augment: str, numbered: Dataset
) -> None:
    batches, again = (NumpyBatches(numbered, 16, augment, seed=3) for _ in range(2))
    expected = [batches[step] for step in range(9)]
    for step in (8, 0, 5):
        for a, b in zip(expected[step], again[step], strict=True):
            np.testing.assert_array_equal(a, b)
    other = NumpyBatches(numbered, 16, augment, seed=4)
    assert not np.array_equal(expected[0][1], other[0][1])


def test_crops_and_mirror_images_are_those_of_the_padded_image() -> None:
    image = np.arange(1, 49, dtype=np.uint8).reshape(6, 8, 1)
    dataset = Dataset(
        np.stack([image] * 400),
        np.zeros(400, int),
        image[None],
        np.zeros(1, int),
        2,
        "one",
        "made up",
    )
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
    crops = [padded[i : i + 6, j : j + 8] for i in range(3) for j in range(3)]
    for augment, allowed in (
        ("pad_crop", crops),
        ("pad_crop_flip", [*crops, *(crop[:, ::-1] for crop in crops)]),
    ):
        x, _ = NumpyBatches(dataset, 400, augment)[0]
        seen = {np.rint(one * 255).astype(np.uint8).tobytes() for one in x}
        assert seen == {crop.tobytes() for crop in allowed}


@pytest.mark.parametrize("side", [1, 4, 5])
def test_cut_out_blackens_a_square_around_any_pixel(side: int) -> None:
    """Each image is one of height x width, one for each centre, and all of them come up."""
    white, labels = np.full((64, 6, 5, 2), 255, np.uint8), np.arange(64) % 2
    batches = NumpyBatches(
        Dataset(white, labels, white, labels, 2, "white", "made up"), 64, cutout=side
    )
    expected = set()
    for row, column in np.ndindex(6, 5):
        image = np.pad(np.ones((6, 5, 2), np.float32), ((8, 8), (8, 8), (0, 0)))
        top, left = row + 8 - side // 2, column + 8 - side // 2
        image[top : top + side, left : left + side] = 0
        expected.add(image[8:-8, 8:-8].tobytes())
    assert {image.tobytes() for step in range(30) for image in batches[step][0]} == expected
    np.testing.assert_array_equal(batches[7][0], batches[7][0])


def test_cut_out_leaves_order_and_shifts_as_they_are(numbered: Dataset) -> None:
    (plain, labels), (cut, same) = (
        NumpyBatches(numbered, 16, "pad_crop", cutout=side)[3] for side in (0, 2)
    )
    np.testing.assert_array_equal(labels, same)
    np.testing.assert_array_equal(plain[cut != 0], cut[cut != 0])
    assert ((cut == 0) & (plain != 0)).any()


def test_wrong_arguments_are_named(numbered: Dataset) -> None:
    with pytest.raises(ValueError, match="augment is 'flip', but must be one of none"):
        NumpyBatches(numbered, 16, "flip")
    with pytest.raises(ValueError, match=r"cutout is 2\.5, but must be the side"):
        NumpyBatches(numbered, 16, cutout=2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seed is -1"):
        NumpyBatches(numbered, 16, seed=-1)
    with pytest.raises(ValueError, match="only 103 train images"):
        NumpyBatches(numbered, 104)
