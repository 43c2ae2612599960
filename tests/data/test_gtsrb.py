"""GTSRB: the official folders, the packed arrays, and a split that keeps tracks together."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfdq import data
from tfdq.data.ppm import read_ppm
from tfdq.data.resampling import resized

HEAD = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n"
PACKED = Path(__file__).parents[3] / "shared/data/gtsrb/gtsrb32.npz"


def picture(rng, height, width):
    """A grey border of 5 pixels around a coloured sign."""
    image = np.full((height, width, 3), 128, np.uint8)
    image[5:-5, 5:-5] = rng.integers(0, 256, (height - 10, width - 10, 3))
    return image


def line(name, image, label):
    height, width = image.shape[:2]
    return f"{name};{width};{height};5;5;{width - 6};{height - 6};{label}\n"


@pytest.fixture
def official(tmp_path):
    """Two classes of two tracks of two frames, and three test images; what was written."""
    rng = np.random.default_rng(0)
    written = {"train": [], "test": []}
    root = tmp_path / "GTSRB"
    for label in (0, 42):
        folder = root / f"Final_Training/Images/{label:05}"
        folder.mkdir(parents=True)
        lines = HEAD
        for track in (0, 1):
            for frame in (0, 1):
                image = picture(rng, 31 + 9 * frame, 40 + label)
                name = f"{track:05}_{frame:05}.ppm"
                Image.fromarray(image).save(folder / name)
                lines += line(name, image, label)
                written["train"].append((image, label))
        (folder / f"GT-{label:05}.csv").write_text(lines)
    images = root / "Final_Test/Images"
    images.mkdir(parents=True)
    lines = HEAD
    for number, label in enumerate((42, 7, 0)):
        image = picture(rng, 25, 64)
        Image.fromarray(image).save(images / f"{number:05}.ppm")
        lines += line(f"{number:05}.ppm", image, label)
        written["test"].append((image, label))
    (images / "GT-final_test.test.csv").write_text(HEAD)  # as published: without labels
    (tmp_path / "GT-final_test.csv").write_text(lines)
    return tmp_path, written


@pytest.mark.parametrize("name", ["gtsrb", "gtsrb+roi"])
def test_the_official_folders(official, name):
    folder, written = official
    loaded = data.load(name, folder)
    assert (loaded.name, loaded.classes, loaded.input_shape) == (name, 43, (32, 32, 3))
    assert loaded.y_train.tolist() == [label for _, label in written["train"]]
    assert loaded.y_test.tolist() == [42, 7, 0]
    assert loaded.track_train.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    for part, found in (("train", loaded.x_train), ("test", loaded.x_test)):
        for (image, _), ours in zip(written[part], found, strict=True):
            wanted = Image.fromarray(image if name == "gtsrb" else image[5:-5, 5:-5])
            theirs = np.asarray(wanted.resize((32, 32), Image.Resampling.BILINEAR), int)
            assert np.abs(ours - theirs).max() <= 1  # Pillow rounds between its two passes


@pytest.mark.parametrize(("height", "width"), [(7, 50), (32, 32), (90, 20)])
def test_resizing_is_tensorflows(height, width):
    image = np.random.default_rng(1).integers(0, 256, (33, 47, 3), dtype=np.uint8)
    wanted = tf.image.resize(image, (height, width), antialias=True).numpy()
    np.testing.assert_allclose(resized(image, height, width), wanted, atol=0.5 + 1e-3)


def test_other_sizes_and_the_folder_itself(official):
    folder, _ = official
    assert data.load("gtsrb", folder / "GTSRB", image_size=(16, 24)).input_shape == (16, 24, 3)
    with pytest.raises(ValueError, match="in colour"):
        data.load("gtsrb", folder, image_size=(32, 32, 1))


def test_what_is_wrong_is_named(official, tmp_path):
    folder, _ = official
    images = folder / "GTSRB/Final_Training/Images/00042"
    with pytest.raises(FileNotFoundError, match=r"no folder GTSRB.*Final_Training_Images\.zip"):
        data.load("gtsrb", images)
    annotations = images / "GT-00042.csv"
    right = annotations.read_text()
    for wrong, words in (
        (right.replace("00001_00000.ppm", "sign.ppm"), "not named TRACK_FRAME.ppm"),
        (right.replace(";5;5;", ";x;5;"), "not made of whole numbers"),
        (right.replace(";", ","), "no column ClassId.*semicolons"),
        (right.replace(";5;5;", ";5;500;"), "does not lie in its 31x82 pixels"),
        (HEAD, r"GT-00042\.csv has a header, but no annotations: unpack"),
        (right.replace(";42\n", ";43\n"), "43 classes are 0..42"),
    ):
        annotations.write_text(wrong)
        with pytest.raises(ValueError, match=words):
            data.load("gtsrb+roi", folder)
    annotations.unlink()
    with pytest.raises(FileNotFoundError, match=r"GT-00042\.csv"):
        data.load("gtsrb", folder)
    annotations.write_text(right)
    frame = images / "00001_00000.ppm"
    frame.rename(images / "elsewhere.ppm")
    with pytest.raises(FileNotFoundError, match=r"no image .*00001_00000\.ppm.*unpack"):
        data.load("gtsrb", folder)
    (images / "elsewhere.ppm").rename(frame)
    (folder / "GT-final_test.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"GT\.zip.*no labels"):
        data.load("gtsrb", folder)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"P5\n2 1\n255\n123456", "not a binary PPM"),
        (b"P6\n2 1\n65535\n123456", "not a binary PPM"),
        (b"P6\n2 2\n255\n123456", "states 2x2 pixels, but holds 2"),
    ],
)
def test_broken_ppm_files_are_named(tmp_path, content, words):
    path = tmp_path / "sign.ppm"
    path.write_bytes(b"P6 # made by hand\n2 1 255\n123456")
    assert read_ppm(path).tolist() == [[[49, 50, 51], [52, 53, 54]]]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read_ppm(path)


@pytest.fixture
def frames(tmp_path):
    """Packed arrays of 5 classes, 4 tracks of 6 images each, numbered anew in each class."""
    labels, tracks, _ = np.indices((5, 4, 6)).reshape(3, -1)
    shown = np.arange(120, dtype=np.uint8)[:, None, None, None]
    order = np.random.default_rng(2).permutation(120)
    np.savez(
        tmp_path / "frames.npz",
        x_train=np.broadcast_to(shown, (120, 4, 4, 3))[order],
        y_train=labels[order],
        track_train=tracks[order],
        x_test=np.zeros((1, 4, 4, 3), np.uint8),
        y_test=[0],
    )
    return data.load(tmp_path / "frames.npz")


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.9])
def test_no_track_is_in_both_parts(frames, share):
    """The pixels are the image's number, the track is that number by 6."""
    split = frames.held_out(share, seed=3)
    kept, held = (set((x[:, 0, 0, 0] // 6).tolist()) for x in (split.x_train, split.x_test))
    assert not kept & held
    assert kept | held == set(range(20))
    tracks = {0.1: 1, 0.25: 1, 0.5: 2, 0.9: 3}[share]
    np.testing.assert_array_equal(np.bincount(split.y_test), 6 * tracks)
    np.testing.assert_array_equal(split.y_test, split.x_test[:, 0, 0, 0] // 24)
    assert len(split.track_train) == len(split.x_train)
    again = frames.held_out(share, seed=3)
    np.testing.assert_array_equal(again.x_test, split.x_test)
    # A part of the images keeps the tracks, too.
    assert len(np.unique(frames.subset(train=60).track_train)) == 20


def test_images_without_tracks_stand_for_themselves():
    digits = data.load("digits")
    split = digits.held_out(0.2)
    counts = np.bincount(digits.y_train)
    assert np.abs(np.bincount(split.y_test) - 0.2 * counts).max() <= 0.5
    assert len(split.x_train) + len(split.x_test) == len(digits.x_train)
    assert split.track_train is None
    both = np.concatenate([split.x_train, split.x_test])
    assert sorted(map(bytes, both)) == sorted(map(bytes, digits.x_train))
    with pytest.raises(ValueError, match=r"in \(0, 1\), got 1"):
        digits.held_out(1)


def test_tracks_that_do_not_fit_are_named(tmp_path):
    arrays = {f"x_{part}": np.zeros((4, 2, 2), np.uint8) for part in ("train", "test")}
    arrays |= {"y_train": np.arange(4), "y_test": np.arange(4)}
    np.savez(tmp_path / "odd.npz", **arrays, track_train=np.zeros(3, int))
    with pytest.raises(ValueError, match=r"odd\.npz: track_train has shape \(3,\)"):
        data.load(tmp_path / "odd.npz")
    fields = {**arrays, "classes": 4, "name": "odd", "source": "made up"}
    with pytest.raises(ValueError, match="track_train is float64"):
        data.Dataset(**fields, track_train=np.zeros(4))
    with pytest.raises(ValueError, match="one track have different labels"):
        data.Dataset(**fields, track_train=np.zeros(4, int))
    with pytest.raises(ValueError, match="no class has more than one track"):
        data.Dataset(**fields, track_train=np.arange(4)).held_out()


@pytest.mark.skipif(not PACKED.is_file(), reason="the packed GTSRB is not beside the project")
def test_the_packed_images():
    signs = data.load(PACKED)
    assert (signs.classes, signs.input_shape) == (43, (32, 32, 3))
    assert (len(signs.x_train), len(signs.x_test)) == (19_604, 12_630)
    assert len(np.unique(signs.track_train)) == 1307
    split = signs.held_out(0.1)
    # All frames of the tracks that are kept are in the part that is kept.
    assert np.isin(signs.track_train, split.track_train).sum() == len(split.x_train)
    assert len(set(signs.track_train) - set(split.track_train)) >= 43
    assert 0.08 < len(split.x_test) / len(signs.x_train) < 0.14
