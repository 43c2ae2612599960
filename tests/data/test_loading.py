"""Loading by name and path: digits, IDX, .npz, image folders; and what is said when it fails."""

import gzip
import hashlib
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tfdq import data
from tfdq.data import decoding_with_pillow, decoding_with_tensorflow
from tfdq.data.folder import _grey
from tfdq.data.idx import DEBIAN_FASHION_MNIST, read_idx
from tfdq.data.image_headers import DamagedImageError, image_size


def test_digits_are_scikit_learns_exactly():
    from sklearn import datasets

    digits = data.load("digits")
    assert digits.input_shape == (8, 8, 1)
    assert (len(digits.x_train), len(digits.x_test)) == (1437, 360)
    # Undo the scaling: every source image is there exactly once, with its label.
    images = np.concatenate([digits.x_train, digits.x_test])[..., 0]
    counts = np.round(images.astype(float) * 16 / 255)
    bunch = datasets.load_digits()
    ours = sorted(
        zip(map(bytes, counts.astype(np.uint8)), np.r_[digits.y_train, digits.y_test], strict=True)
    )
    theirs = sorted(zip(map(bytes, bunch.images.astype(np.uint8)), bunch.target, strict=True))
    assert ours == theirs
    assert np.unique(images).tolist() == [int(v * 255 / 16 + 0.5) for v in range(17)]
    # The split is stratified, and the same everywhere: recorded results depend on it.
    share = np.bincount(digits.y_test) / np.bincount(bunch.target)
    assert np.abs(share - 360 / 1797).max() < 0.006
    assert hashlib.sha256(digits.x_test.tobytes()).hexdigest().startswith("8bc4186194992850")


def write_idx(path, array):
    payload = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(payload) if path.suffix == ".gz" else payload)


@pytest.fixture
def idx_arrays():
    rng = np.random.default_rng(0)
    return {
        "train-images-idx3-ubyte": rng.integers(0, 256, (30, 28, 28), dtype=np.uint8),
        "train-labels-idx1-ubyte": rng.integers(0, 10, 30, dtype=np.uint8),
        "t10k-images-idx3-ubyte": rng.integers(0, 256, (10, 28, 28), dtype=np.uint8),
        "t10k-labels-idx1-ubyte": rng.integers(0, 10, 10, dtype=np.uint8),
    }


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("below", [False, True])
def test_idx_files_in_data_dir(tmp_path, idx_arrays, name, ending, below):
    folder = tmp_path / name if below else tmp_path
    folder.mkdir(exist_ok=True)
    for stem, array in idx_arrays.items():
        write_idx(folder / (stem + ending), array)
    loaded = data.load(name, tmp_path)
    np.testing.assert_array_equal(loaded.x_train[..., 0], idx_arrays["train-images-idx3-ubyte"])
    np.testing.assert_array_equal(loaded.y_test, idx_arrays["t10k-labels-idx1-ubyte"])
    assert (loaded.name, loaded.classes, len(loaded.class_names)) == (name, 10, 10)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\3\4 not idx", "not an IDX file"),
        (b"\0\0\x08\x01\0\0", "inside its header"),
        (b"\0\0\x08\x01\0\0\0\x05abc", "does not hold"),
        (b"\0\0\x08\x01\0\0\0\x02abc", "does not hold"),
    ],
)
def test_broken_idx_files_are_named(tmp_path, content, words):
    path = tmp_path / "t10k-labels-idx1-ubyte"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path.name}.*{words}"):
        read_idx(path)
    packed = tmp_path / "cut.gz"
    packed.write_bytes(gzip.compress(content)[:-9])
    with pytest.raises(ValueError, match=r"cut\.gz"):
        read_idx(packed)


@pytest.mark.skipif(
    not DEBIAN_FASHION_MNIST.is_dir(), reason="Debian's dataset-fashion-mnist is not installed"
)
def test_fashion_mnist_of_debian():
    fashion = data.load("fashion_mnist")
    assert fashion.x_train.shape == (60_000, 28, 28, 1)
    assert np.bincount(fashion.y_train).tolist() == [6000] * 10
    assert np.bincount(fashion.y_test).tolist() == [1000] * 10
    # Mean and deviation of the training pixels as published with the data set's benchmarks.
    scaled = fashion.x_train / np.float32(255)
    assert scaled.mean(dtype=np.float64) == pytest.approx(0.2860, abs=5e-5)
    assert scaled.std(dtype=np.float64) == pytest.approx(0.3530, abs=5e-5)


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.integers(0, 256, (12, 8, 8), dtype=np.uint8),
        "y_train": np.arange(12) % 3,
        "x_test": rng.integers(0, 256, (6, 8, 8), dtype=np.uint8),
        "y_test": np.arange(6) % 3,
    }


def test_npz(tmp_path, arrays):
    path = tmp_path / "faces.npz"
    np.savez_compressed(path, **arrays, class_names=["a", "b", "c", "d"])
    loaded = data.load(path)
    np.testing.assert_array_equal(loaded.x_test[..., 0], arrays["x_test"])
    assert (loaded.name, loaded.classes, loaded.class_names[3]) == ("faces", 4, "d")
    np.savez(path, **arrays)
    assert data.load(str(path)).classes == 3


def test_npz_with_pickled_objects_is_refused(tmp_path, arrays):
    path = tmp_path / "pickled.npz"
    np.savez(path, **(arrays | {"y_train": np.array([object()] * 12, object)}))
    with pytest.raises(ValueError, match=r"pickled\.npz: the array y_train.*Object arrays"):
        data.load(path)


def test_broken_npz_files_are_named(tmp_path, arrays):
    path = tmp_path / "broken.npz"
    with pytest.raises(FileNotFoundError, match=r"no file .*broken.npz.*savez_compressed"):
        data.load(path)
    path.write_bytes(b"not a zip")
    with pytest.raises(ValueError, match=r"broken.npz"):
        data.load(path)
    np.savez(path, x_train=arrays["x_train"], train_y=arrays["y_train"])
    with pytest.raises(ValueError, match=r"no y_train, x_test, y_test.*holds x_train, train_y"):
        data.load(path)
    np.savez(path, **arrays)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"broken.npz"):
        data.load(path)


@pytest.mark.parametrize("label", [2**40, 1000])
def test_npz_labels_that_cannot_be_classes_are_named(tmp_path, arrays, label):
    path = tmp_path / "odd.npz"
    np.savez(path, **(arrays | {"y_train": np.where(arrays["y_train"] == 2, label, 0)}))
    with pytest.raises(ValueError, match=rf"odd\.npz: the largest label is {label}.*without gaps"):
        data.load(path)
    # A part of a data set of many classes need not have images of each.
    np.savez(path, **(arrays | {"y_train": np.where(arrays["y_train"] == 2, 999, 0)}))
    assert data.load(path).classes == 1000


def write_images(folder, count, size=(9, 7), mode="RGB", ending="png", seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    channels = {"L": (), "RGB": (3,), "RGBA": (4,), "LA": (2,)}[mode]
    images = rng.integers(0, 256, (count, *size, *channels), dtype=np.uint8)
    for i, image in enumerate(images):
        Image.fromarray(image, mode).save(folder / f"{i:03d}.{ending}")
    return images


def test_image_folder_with_train_and_test(tmp_path):
    expected = {}
    for part, count in (("train", 5), ("val", 3)):
        for seed, name in enumerate(("cat", "ant")):
            expected[part, name] = write_images(tmp_path / part / name, count, seed=seed)
    (tmp_path / "train" / "cat" / ".DS_Store").write_bytes(b"")
    loaded = data.load(tmp_path)
    assert loaded.class_names == ("ant", "cat")
    assert loaded.y_train.tolist() == [0] * 5 + [1] * 5
    np.testing.assert_array_equal(loaded.x_train[:5], expected["train", "ant"])
    np.testing.assert_array_equal(loaded.x_test[3:], expected["val", "cat"])
    assert loaded.name == tmp_path.name


def test_image_folder_without_parts_is_split(tmp_path):
    for seed, name in enumerate("abc"):
        write_images(tmp_path / name, 20, seed=seed)
    loaded = data.load(tmp_path)
    assert np.bincount(loaded.y_test).tolist() == [4, 4, 4]
    assert np.bincount(loaded.y_train).tolist() == [16, 16, 16]
    assert np.array_equal(loaded.x_test, data.load(tmp_path).x_test)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 3), ("LA", 1)])
def test_image_folder_channels(tmp_path, mode, channels):
    images = write_images(tmp_path / "a", 5, mode=mode)
    write_images(tmp_path / "b", 5, mode=mode)
    loaded = data.load(tmp_path)
    assert loaded.input_shape == (9, 7, channels)
    x = images if mode == "L" else images[..., :channels]
    everything = np.concatenate([loaded.x_train, loaded.x_test])
    assert {i.tobytes() for i in x} <= {i.tobytes() for i in everything}


def test_grey_images_among_coloured_ones_become_coloured(tmp_path):
    grey = write_images(tmp_path / "a", 5, mode="L")
    write_images(tmp_path / "b", 5)
    loaded = data.load(tmp_path)
    everything = np.concatenate([loaded.x_train, loaded.x_test])
    assert np.repeat(grey[..., None], 3, -1)[2].tobytes() in {i.tobytes() for i in everything}


@pytest.mark.parametrize(("mode", "channels"), [("L", 3), ("RGB", 1)])
def test_image_folder_becomes_coloured_or_grey_if_asked(tmp_path, mode, channels):
    images = write_images(tmp_path / "a", 5, mode=mode)
    write_images(tmp_path / "b", 5, mode=mode)
    loaded = data.load(tmp_path, image_size=(9, 7, channels))
    assert loaded.input_shape == (9, 7, channels)
    assert f"resized to 9x7x{channels}" in loaded.source
    everything = np.concatenate([loaded.x_train, loaded.x_test]).astype(int)
    for image in images:
        if mode == "L":
            wanted = np.repeat(image[..., None], 3, -1).astype(int)
        else:
            # Pillow's luma, ITU-R 601-2, which TensorFlow's rounds otherwise.
            wanted = np.asarray(Image.fromarray(image).convert("L")).astype(int)[..., None]
        assert np.abs(everything - wanted).max((1, 2, 3)).min() <= (mode == "RGB")
    with pytest.raises(ValueError, match="with 1 or 3 channels"):
        data.load(tmp_path, image_size=(9, 7, 2))


def test_image_folder_is_resized(tmp_path):
    """Against the mean over blocks, which antialiased halving comes close to on smooth images."""
    ramp = np.add.outer(np.arange(16), np.arange(16)).astype(np.uint8) * 8
    for name, size in (("a", 16), ("b", 32)):
        (tmp_path / name).mkdir()
        for i in range(5):
            Image.fromarray(np.kron(ramp, np.ones((size // 16, size // 16), np.uint8))).save(
                tmp_path / name / f"{i}.png"
            )
    with pytest.raises(ValueError, match=r"differ in size, from \(16, 16\) to \(32, 32\)"):
        data.load(tmp_path)
    with pytest.raises(ValueError, match=r"10 images of 1000000x1000000 are .* GiB"):
        data.load(tmp_path, image_size=1_000_000)
    with pytest.raises(ValueError, match="image_size is '8', but must be a number"):
        data.load(tmp_path, image_size="8")
    assert data.load(tmp_path, image_size=8).input_shape == (8, 8, 1)
    assert data.load(tmp_path, image_size=[8, 9]).input_shape == (8, 9, 1)  # type: ignore[arg-type]
    loaded = data.load(tmp_path, image_size=(8, 8))
    assert "resized to 8x8" in loaded.source
    blocks = ramp.reshape(8, 2, 8, 2).mean((1, 3))
    assert np.abs(loaded.x_train[:, 1:-1, 1:-1, 0] - blocks[1:-1, 1:-1]).max() <= 1


@pytest.mark.parametrize(
    ("ending", "mode"),
    [("png", "RGB"), ("jpg", "L"), ("jpeg", "RGB"), ("bmp", "RGB"), ("gif", "L")],
)
def test_sizes_are_read_off_the_first_bytes_as_pillow_reads_them(tmp_path, ending, mode):
    for size in ((9, 7), (301, 2), (1, 260)):
        write_images(tmp_path, 1, size=size, mode=mode, ending=ending)
        path = tmp_path / f"000.{ending}"
        assert image_size(path) == size == Image.open(path).size[::-1]
        whole = path.read_bytes()
        for length in (0, 1, 3, 9):
            path.write_bytes(whole[:length])
            assert image_size(path) is None
    exif = b"Exif\0\0" + b"x" * 99
    Image.new("L", (70, 50)).save(tmp_path / "p.jpg", progressive=True, exif=exif)
    assert image_size(tmp_path / "p.jpg") == (50, 70)
    (tmp_path / "p.jpg").write_bytes(b"\xff" * 100_000)
    assert image_size(tmp_path / "p.jpg") is None


def _pipe(path):
    os.mkfifo(path)


def _link_loop(path):
    path.symlink_to(path)


def _broken_link(path):
    path.symlink_to("nowhere.png")


def _device(path):
    path.symlink_to("/dev/zero")


def _link_to_a_folder(path):
    path.symlink_to("..")


def _sparse(path):
    with path.open("wb") as file:
        file.truncate(2**40)


def _many_pixels(path):
    """A PNG of 100,000 x 100,000 pixels in a few bytes: 28 GiB decoded."""
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 100_000, 100_000)
    path.write_bytes(header + bytes([8, 2, 0, 0, 0]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_pipe, "is a pipe, no image file: move it away"),
        (Path.mkdir, "is a folder, no image file"),
        (_link_to_a_folder, "is a folder, no image file"),
        (_device, "is a device, no image file"),
        (_link_loop, "is a link that leads to no file .*: remove it"),
        (_broken_link, "is a link that leads to no file .*: remove it"),
        (_sparse, "has 1,048,576 MiB, but at most 256 are read"),
        (_many_pixels, "has 100000x100000 pixels, but at most 67,108,864 are read"),
    ],
)
@pytest.mark.timeout(60)
def test_what_is_no_image_file_is_named_before_it_is_opened(tmp_path, make, message):
    write_images(tmp_path / "a", 3)
    write_images(tmp_path / "b", 3)
    make(tmp_path / "b" / "odd.png")
    with pytest.raises(ValueError, match=rf"b/odd\.png {message}"):
        data.load(tmp_path)


def test_links_to_images_are_images(tmp_path):
    write_images(tmp_path / "store", 4)
    for name in "ab":
        (tmp_path / "data" / name).mkdir(parents=True)
        for image in (tmp_path / "store").iterdir():
            (tmp_path / "data" / name / image.name).symlink_to(image)
    loaded = data.load(tmp_path / "data")
    assert len(loaded.y_train) + len(loaded.y_test) == 8


def test_images_that_do_not_fit_into_memory_are_refused_before_they_are_decoded(
    tmp_path, monkeypatch
):
    for name in "ab":
        write_images(tmp_path / name, 20, size=(100, 100))
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 10}
    monkeypatch.setattr(os, "sysconf", lambda name: pages[name])
    with pytest.raises(ValueError, match=r"40 images are 0 GiB, but this machine has 0"):
        data.load(tmp_path)
    np.savez_compressed(tmp_path / "zeros.npz", x_train=np.zeros(10**6, np.uint8))
    with pytest.raises(ValueError, match=r"zeros\.npz holds 0 GiB of arrays"):
        data.load(tmp_path / "zeros.npz")


def test_broken_image_folders_are_named(tmp_path):
    with pytest.raises(ValueError, match="0 folders, but"):
        data.load(tmp_path)
    write_images(tmp_path, 3)
    with pytest.raises(ValueError, match="0 folders and 3 images beside them"):
        data.load(tmp_path)
    for image in tmp_path.glob("*.png"):
        image.unlink()
    write_images(tmp_path / "train" / "a", 2)
    write_images(tmp_path / "train" / "b", 2)
    with pytest.raises(ValueError, match="none called test, val, validation"):
        data.load(tmp_path)
    write_images(tmp_path / "test" / "a", 2)
    with pytest.raises(ValueError, match="differ in their classes: b"):
        data.load(tmp_path)
    (tmp_path / "test" / "b").mkdir()
    with pytest.raises(ValueError, match="test/b is empty"):
        data.load(tmp_path)
    (tmp_path / "test" / "b" / "Thumbs.db").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"test/b holds Thumbs\.db"):
        data.load(tmp_path)
    (tmp_path / "test" / "b" / "Thumbs.db").rename(tmp_path / "test" / "b" / "0.png")
    with pytest.raises(ValueError, match=r"test/b/0\.png is not a readable image: it is damaged"):
        data.load(tmp_path)


@pytest.mark.parametrize("ending", ["png", "bmp", "gif", "jpg"])
@pytest.mark.parametrize("resize", [None, "stretch", "shorter-side"])
def test_pillow_decodes_what_tensorflow_does(tmp_path, ending, resize):
    modes = ["RGB", "L", "RGBA", "LA", "P", "1", "I;16"] if ending == "png" else ["RGB", "L"]
    ramp = np.add.outer(np.arange(40) * 5, np.arange(30) * 2).astype(np.uint8)
    colours = np.stack([ramp, 255 - ramp, ramp[::-1]], -1)
    files = []
    for mode in modes:
        image = Image.fromarray(colours).convert("L" if mode == "I;16" else mode)
        if mode == "I;16":
            image = Image.fromarray(ramp.astype(np.uint16) * 257)
        files.append(tmp_path / f"{len(files)}.{ending}")
        image.save(files[-1])
    size = None if resize is None else (9, 12)
    found, wanted = (
        list(module.decoded(files, size, resize or "stretch"))
        for module in (decoding_with_pillow, decoding_with_tensorflow)
    )
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.shape == theirs.shape
        # TensorFlow's JPEG is a fast approximation.
        allowed = 8 if ending == "jpg" else resize is not None
        assert np.abs(ours.astype(int) - theirs).max() <= allowed


@pytest.mark.parametrize("decoding", [decoding_with_pillow, decoding_with_tensorflow])
def test_damaged_images_are_told_in_their_order(tmp_path, decoding):
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "0.png")
    (tmp_path / "1.png").write_bytes((tmp_path / "0.png").read_bytes()[:40])
    images = decoding.decoded([tmp_path / "0.png", tmp_path / "1.png"], None, "stretch")
    assert next(images).shape == (4, 4, 1)
    with pytest.raises(DamagedImageError):
        next(images)


def test_the_luma_is_tensorflows():
    import tensorflow as tf

    colours = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    np.testing.assert_array_equal(_grey(colours), tf.image.rgb_to_grayscale(colours).numpy())


def test_unknown_names_list_the_known():
    with pytest.raises(FileNotFoundError, match=r"no data set 'cifar11'.*cifar10, cifar100"):
        data.load("cifar11")
    with pytest.raises(ValueError, match="image_size"):
        data.load("digits", image_size=(16, 16))
