"""Load a data set by name or by path."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from tfdq._extras import explained
from tfdq.data.dataset import Dataset
from tfdq.data.digits import load_digits
from tfdq.data.idx import DEBIAN_FASHION_MNIST, find_idx, load_idx

Resize = Literal["stretch", "shorter-side"]
_GTSRB_NAMES = ("gtsrb", "gtsrb+roi")
_IDX_NAMES = ("mnist", "fashion_mnist")
_TFDS_NAMES = ("cifar10", "cifar100", "svhn_cropped", "svhn_cropped+extra", *_IDX_NAMES)


def names() -> tuple[str, ...]:
    """Return the names `load` takes; anything else is a path."""
    return ("digits", *_TFDS_NAMES, *_GTSRB_NAMES)


def load(
    name_or_path: str | Path,
    data_dir: str | Path | None = None,
    *,
    download: bool = False,
    image_size: int | tuple[int, ...] | None = None,
    resize: Resize = "stretch",
    channels: Literal["rgb", "bgr"] = "rgb",
) -> Dataset:
    """Load an image data set into memory.

    Args:
        name_or_path: A name of `names()`; the path of an `.npz` file with the arrays `x_train`,
            `y_train`, `x_test` and `y_test`; or a folder of images, `train/CLASS/*` and
            `test/CLASS/*`, or just `CLASS/*`, of which a fifth becomes the test part.
            `svhn_cropped+extra` adds the 531,131 easier images to the training part; `gtsrb+roi`
            cuts the traffic signs out of their surroundings.
        data_dir: Where TFDS data sets are prepared; by default TFDS's own folder,
            `~/tensorflow_datasets`. For `mnist` and `fashion_mnist` also a folder of IDX files.
            Debian's package dataset-fashion-mnist is found by itself. For `gtsrb` the folder with
            the unpacked archives of the benchmark.
        download: Let TFDS download and prepare a named data set that is not there.
        image_size: `(height, width)` that the images of a folder, or of `gtsrb` (by default 32x32),
            are resized to, or one number for both; `(height, width, channels)` makes them grey (1)
            or colour (3), too.
        resize: `"stretch"` changes both sides of a folder's images to that size;
            `"shorter-side"` keeps their proportions and cuts out the middle.
        channels: Order of the colours; `"bgr"` for models made with OpenCV's.

    Returns:
        The data set, images as bytes.

    Raises:
        ValueError: If the name is unknown or the file's content does not fit.
        FileNotFoundError: If the data is not there; says what to run.
    """
    if channels not in ("rgb", "bgr"):
        raise ValueError(f"channels must be 'rgb' or 'bgr', got {channels!r}.")
    if resize not in get_args(Resize):
        raise ValueError(f"resize must be one of {get_args(Resize)}, got {resize!r}.")
    found = _load(name_or_path, data_dir, download, image_size, resize)
    return found if channels == "rgb" else found.reversed_channels()


def _load(
    name_or_path: str | Path,
    data_dir: str | Path | None,
    download: bool,
    image_size: int | tuple[int, ...] | None,
    resize: Resize,
) -> Dataset:
    name = str(name_or_path)
    check_name(name)
    if isinstance(image_size, str):
        raise ValueError(
            f"image_size is {image_size!r}, but must be a number of pixels or (height, width)."
        )
    if image_size is not None:
        image_size = (image_size,) * 2 if isinstance(image_size, int) else tuple(image_size)
    folder = None if data_dir is None else Path(data_dir).expanduser()
    if name in _GTSRB_NAMES:
        from tfdq.data.gtsrb import load_gtsrb

        return load_gtsrb(folder or Path(), image_size, region_only=name.endswith("+roi"))
    if image_size is not None and name in names():
        raise ValueError(f"image_size is for folders of images; {name} has its own size.")
    if name == "digits":
        return load_digits()
    if name in _TFDS_NAMES:
        files = _idx_files(name, folder) if name in _IDX_NAMES else None
        if files:
            return load_idx(name, files)
        # Imported here, as the readers below: they load TensorFlow.
        try:
            from tfdq.data.prepared import load_prepared
        except ModuleNotFoundError as error:
            raise explained(error, f"the data set {name!r}, read with TFDS,") from error

        return load_prepared(name, folder, download)
    path = Path(name_or_path).expanduser()
    if path.suffix == ".npz":
        from tfdq.data.archive import load_npz

        return load_npz(path)
    from tfdq.data.folder import load_folder

    return load_folder(path, image_size, resize)


def check_name(name: str) -> None:
    """Check that a data set is known by that name, or that it names a folder or an `.npz` file.

    Raises:
        FileNotFoundError: If it is none of them.
    """
    path = Path(name).expanduser()
    # What is wrong with an .npz file is said by its reader.
    if name not in names() and not path.is_dir() and path.suffix != ".npz":
        raise FileNotFoundError(
            f"there is no data set {name!r}: give one of {', '.join(names())}, the path of an "
            "existing folder of images, or of an .npz file."
        )


def _idx_files(name: str, data_dir: Path | None) -> dict[str, Path] | None:
    """Return the IDX files of (Fashion-)MNIST where they can be found without TFDS."""
    if data_dir is not None:
        return find_idx(data_dir) or find_idx(data_dir / name)
    return find_idx(DEBIAN_FASHION_MNIST) if name == "fashion_mnist" else None
