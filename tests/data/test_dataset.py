"""Dataset: what it checks, stratified subsets, padding."""

import numpy as np
import pytest

from tfdq.data import Dataset
from tfdq.data.dataset import draw_stratified


def make(**changes) -> Dataset:
    rng = np.random.default_rng(0)
    fields = {
        "x_train": rng.integers(0, 256, (20, 6, 4, 3), dtype=np.uint8),
        "y_train": np.arange(20) % 4,
        "x_test": rng.integers(0, 256, (8, 6, 4, 3), dtype=np.uint8),
        "y_test": np.arange(8) % 4,
        "classes": 4,
        "name": "toy",
        "source": "made up",
    }
    return Dataset(**(fields | changes))


def test_canonical_types():
    toy = make(
        x_train=np.zeros((20, 6, 4), np.int32),
        x_test=np.full((8, 6, 4), 255),
        y_train=(np.arange(20, dtype=np.uint8) % 4)[:, None],
    )
    assert toy.x_train.dtype == toy.x_test.dtype == np.uint8
    assert toy.input_shape == (6, 4, 1)
    assert toy.y_train.shape == (20,)
    assert toy.y_train.dtype == np.int64
    with pytest.raises(AttributeError):
        toy.classes = 5


def test_it_is_shown_in_one_line():
    shown = repr(make())
    assert shown == "Dataset('toy': 20 training and 8 test images, 6x4x3, 4 classes)"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x_train": np.zeros((20, 6, 4, 3), np.float32)}, "x_train is float32.*x \\* 255"),
        ({"x_train": np.full((20, 6, 4, 3), 256)}, "values 256..256"),
        ({"x_test": np.full((8, 6, 4, 3), -1)}, "values -1..-1"),
        ({"x_train": np.zeros((20, 24), np.uint8)}, r"shape \(20, 24\)"),
        ({"x_train": np.zeros((0, 6, 4, 3), np.uint8)}, "none of them 0"),
        ({"x_train": np.zeros((19, 6, 4, 3), np.uint8)}, "19 images, but y_train 20 labels"),
        ({"x_test": np.zeros((8, 6, 6, 3), np.uint8)}, "one shape"),
        ({"y_train": np.full(20, 4)}, "labels 4..4"),
        ({"y_test": np.full(8, -1)}, "labels -1..-1"),
        ({"y_train": np.eye(4)[np.arange(20) % 4]}, "argmax"),
        ({"y_train": np.zeros(20)}, "labels are integers"),
        ({"classes": 1}, "classes is 1"),
        ({"class_names": ("a", "b")}, "2 class names for 4 classes"),
    ],
)
def test_wrong_content_is_named(changes, words):
    with pytest.raises(ValueError, match=f"toy.*{words}"):
        make(**changes)


@pytest.mark.parametrize("count", [0, 1, 7, 100, 999, 1000])
def test_stratified_draw_is_proportional(count):
    labels = np.random.default_rng(0).choice(4, 1000, p=[0.5, 0.3, 0.15, 0.05])
    drawn = draw_stratified(labels, count, seed=3)
    assert len(np.unique(drawn)) == count
    exact = np.bincount(labels) * count / 1000
    assert (np.abs(np.bincount(labels[drawn], minlength=4) - exact) < 1).all()


def test_stratified_draw_is_uniform_within_a_class():
    labels = np.repeat([0, 1], [20, 10])
    hits = sum(np.bincount(draw_stratified(labels, 6, s), minlength=30) for s in range(3000))
    # Each index is drawn with probability 1/5; 5 standard deviations of the binomial count.
    assert np.abs(hits - 600).max() < 5 * np.sqrt(3000 * 0.2 * 0.8)


def test_subset():
    toy = make()
    part = toy.subset(train=8, seed=1)
    assert np.bincount(part.y_train).tolist() == [2, 2, 2, 2]
    assert part.x_test is toy.x_test
    assert "8 of 20 train images (seed 1)" in part.source
    rows = {image.tobytes(): label for image, label in zip(toy.x_train, toy.y_train, strict=True)}
    assert [rows[image.tobytes()] for image in part.x_train] == part.y_train.tolist()
    assert np.array_equal(toy.subset(train=8, seed=1).x_train, part.x_train)
    assert not np.array_equal(toy.subset(train=8, seed=2).x_train, part.x_train)
    assert toy.subset() is toy
    for count in (0, 21):
        with pytest.raises(ValueError, match=f"{count} train images"):
            toy.subset(train=count)


def test_padded():
    toy = make()
    padded = toy.padded(9)
    assert padded.input_shape == (9, 9, 3)
    np.testing.assert_array_equal(padded.x_train[:, 1:7, 2:6], toy.x_train)
    assert padded.x_train.sum(dtype=np.int64) == toy.x_train.sum(dtype=np.int64)
    with pytest.raises(ValueError, match="do not fit 5x5"):
        toy.padded(5)
