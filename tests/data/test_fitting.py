"""Images and classes brought to what a model takes: size, channels, the order of the outputs."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tfdq import data
from tfdq.data.label_files import labels_in_model_file, read_labels

RNG = np.random.default_rng(0)


def photos(folder: Path, size: tuple[int, int]) -> np.ndarray:
    """Write two classes of two images each; return the images of the second, in order of name."""
    made = RNG.integers(0, 256, (2, 2, *size, 3), dtype=np.uint8)
    for name, images in zip(("a", "b"), made, strict=True):
        for part in ("train", "test"):
            (folder / part / name).mkdir(parents=True)
            for number, pixels in enumerate(images):
                Image.fromarray(pixels).save(folder / part / name / f"{number}.png")
    return made[1]


@pytest.mark.parametrize(("size", "rows", "columns"), [((10, 17), 0, 3), ((14, 10), 2, 0)])
def test_the_shorter_side_is_resized_and_the_middle_cut_out(
    size: tuple[int, int], rows: int, columns: int, tmp_path: Path
) -> None:
    """Where the shorter side has its size already, the pixels are those of the image."""
    images = photos(tmp_path, size)
    found = data.load(tmp_path, image_size=10, resize="shorter-side")
    expected = images[:, rows : rows + 10, columns : columns + 10]
    np.testing.assert_array_equal(found.x_test[found.y_test == 1], expected)
    assert found.source.endswith("resized to 10x10 by the shorter side")
    stretched = data.load(tmp_path, image_size=10)
    assert (stretched.x_test[stretched.y_test == 1] != expected).any()


def test_the_shorter_side_keeps_the_proportions(tmp_path: Path) -> None:
    """Bands of three colours, one above the other: the outer ones are cut off."""
    bands = np.zeros((60, 20, 3), np.uint8)
    bands[:20, :, 0] = bands[20:40, :, 1] = bands[40:, :, 2] = 255
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(5):
            Image.fromarray(bands).save(tmp_path / name / f"{number}.png")
    image = data.load(tmp_path, image_size=(8, 8), resize="shorter-side").x_test[0]
    np.testing.assert_array_equal(image[1:-1], np.broadcast_to([0, 255, 0], (6, 8, 3)))
    stretched = data.load(tmp_path, image_size=(8, 8)).x_test[0]
    np.testing.assert_array_equal(stretched[0], np.broadcast_to([255, 0, 0], (8, 3)))


def test_channels_may_be_in_the_other_order(tmp_path: Path) -> None:
    images = photos(tmp_path, (6, 5))
    found = data.load(tmp_path, channels="bgr")
    np.testing.assert_array_equal(found.x_test[found.y_test == 1], images[..., ::-1])
    grey = data.load(tmp_path, image_size=(6, 5, 1), channels="bgr")
    expected = data.load(tmp_path, image_size=(6, 5, 1))
    np.testing.assert_array_equal(grey.x_test, expected.x_test)
    with pytest.raises(ValueError, match="channels must be"):
        data.load(tmp_path, channels="gbr")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="resize must be one of"):
        data.load(tmp_path, resize="crop")  # type: ignore[arg-type]


def test_classes_are_numbered_as_the_outputs(tmp_path: Path) -> None:
    photos(tmp_path, (4, 4))
    found = data.load(tmp_path)
    turned = found.in_order(["b", "a"], "names.txt")
    np.testing.assert_array_equal(turned.y_test, 1 - found.y_test)
    np.testing.assert_array_equal(turned.y_train, 1 - found.y_train)
    np.testing.assert_array_equal(turned.x_test, found.x_test)
    assert turned.class_names == ("b", "a")
    for names, message in (
        (["a", "b", "c"], "names 3 classes .3 different ones., but"),
        (["a", "a"], "1 different ones"),
        (["a", "B"], "names B, but the classes of .* are called b"),
    ):
        with pytest.raises(ValueError, match=message):
            found.in_order(names, "names.txt")
    unnamed = data.Dataset(
        found.x_train, found.y_train, found.x_test, found.y_test, 2, "unnamed", "memory"
    )
    with pytest.raises(ValueError, match="has no names of classes"):
        unnamed.in_order(["a", "b"], "names.txt")


def test_files_of_labels(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_bytes(b"\xef\xbb\xbfcat\r\n\n dog \nfish")
    assert read_labels(file) == ("cat", "dog", "fish")
    with pytest.raises(FileNotFoundError, match="one class a line"):
        read_labels(tmp_path / "missing.txt")
    for content, message in (
        (b"\n", "is empty"),
        (b"\xff\xfe", "no UTF-8"),
        (b"a" * 2**21, "more"),
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_labels(file)


def test_labels_packed_behind_a_model(tmp_path: Path) -> None:
    file = tmp_path / "model.tflite"
    file.write_bytes(b"\x1c\x00\x00\x00TFL3" + bytes(40))
    assert labels_in_model_file(file) == ()
    plain = file.read_bytes()
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("labels.txt", "cat\ndog\n" * 4)
    assert labels_in_model_file(file) == ("cat", "dog") * 4
    damaged = bytearray(file.read_bytes())
    damaged[len(plain) + 42] ^= 0xFF
    file.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"model\.tflite: the labels packed .* --labels"):
        labels_in_model_file(file)
    # Of several texts nobody says which are the classes.
    file.write_bytes(plain)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("labels.txt", "cat")
        archive.writestr("licence.txt", "free")
    assert labels_in_model_file(file) == ()
    # What unpacks to more is not unpacked.
    file.write_bytes(plain)
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("labels.txt", "a" * 2**24)
    with pytest.raises(ValueError, match="more than 1,048,576 bytes"):
        labels_in_model_file(file)
