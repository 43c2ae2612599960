"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tfdq.experiments.settings import MODELS, DataSettings
from tflite_export.ir.limits import DEFAULT, OPTION_HELP, Limits

if TYPE_CHECKING:
    import numpy as np

    from tfdq.data import Dataset

DATA_NAMES = (
    "digits",
    "fashion_mnist",
    "mnist",
    "cifar10",
    "cifar100",
    "svhn_cropped",
    "svhn_cropped+extra",
    "gtsrb",
    "gtsrb+roi",
)
ATTACK_NAMES = (
    "fgsm",
    "r+fgsm",
    "bim",
    "pgd",
    "mim",
    "t-pgd",
    "cw",
    "apgd-ce",
    "apgd-dlr",
    "apgd-t",
    "fab",
    "square",
    "spsa",
    "low-bit",
)


def one_of(*names: str) -> Callable[[str], list[str]]:
    """Return a completion that knows some names."""

    def complete(begun: str) -> list[str]:
        return [name for name in names if name.startswith(begun)]

    return complete


def complete_recipe(begun: str) -> list[str]:
    """Return the recipes that a word may become; their files are only listed, not read."""
    folder = Path(__file__).parents[1] / "experiments" / "recipes" / "small"
    return sorted(path.stem for path in folder.glob(f"{begun}*.toml"))


def complete_data(begun: str) -> list[str]:
    """Return the data sets that a word may become."""
    return [name for name in DATA_NAMES if name.startswith(begun)]


def complete_model(begun: str) -> list[str]:
    """Return the network names that a word may become."""
    return [name for name in MODELS if name.startswith(begun)]


def complete_zoo(begun: str) -> list[str]:
    """Return the files of the zoo that a word may become; they are only listed, not read."""
    folder = Path(__file__).parents[1] / "zoo" / "files"
    return sorted(path.stem for path in folder.glob(f"{begun}*.json"))


def complete_attack(begun: str) -> list[str]:
    """Return the attacks that a word may become."""
    return [name for name in ATTACK_NAMES if name.startswith(begun)]


_DATA = DataSettings.model_fields
EPS_HELP = "Strength, images in [0, 1]: 8/255 or 0.03."

DataOption = Annotated[
    str,
    typer.Option(
        "--data",
        help=_DATA["name"].description,
        metavar="NAME|PATH",
        autocompletion=complete_data,
    ),
]
DataDirOption = Annotated[
    Path | None,
    typer.Option("--data-dir", help=_DATA["dir"].description, show_default=False),
]
ImageSizeOption = Annotated[
    str | None,
    typer.Option(
        "--image-size",
        help=_DATA["image_size"].description,
        metavar="SIZE|HxW[xC]",
    ),
]
SeedOption = Annotated[int, typer.Option("--seed", help="Of every random choice.", min=0)]
LimitOption = Annotated[
    int | None, typer.Option("--limit", help="Test images to use, drawn at random.", min=1)
]
EpsOption = Annotated[str, typer.Option("--eps", help=EPS_HELP, metavar="EPS")]
TrustOption = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Load tf_keras models that hold code (Lambda, SavedModel): it is run. Code in files "
        "of Keras 3 never is.",
    ),
]
CostLimitOption = Annotated[
    list[str] | None,
    typer.Option(
        "--cost-limit",
        help=f"{OPTION_HELP.capitalize()}.",
        metavar="NAME=NUMBER",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


def number(text: str, name: str = "eps") -> float:
    """Return the value of ``8/255`` or ``0.03``.

    Args:
        text: what was given.
        name: of the option, for the message.

    Raises:
        ValueError: it is no such number, or is not above 0; a strength above 1.
    """
    try:
        above, _, below = text.partition("/")
        value = float(Fraction(above) / Fraction(below or 1))
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(f"{text!r} is no number; write 8/255 or 0.03") from error
    if value <= 0:
        raise ValueError(f"{name} must be > 0, got {text!r}")
    if name == "eps" and value > 1:
        raise ValueError(f"eps {text} is more than images in [0, 1] have; did you mean {text}/255?")
    return value


def size(text: str | None) -> tuple[int, ...] | None:
    """Return (height, width) of ``32`` or ``32x48``, with channels of ``32x48x3``; None for None.

    Raises:
        ValueError: it is neither.
    """
    if text is None:
        return None
    parts = text.lower().split("x")
    numbers = [int(part) for part in parts if part.isdecimal() and int(part)]
    if not len(numbers) == len(parts) <= 3:
        raise ValueError(
            f"--image-size takes 32 or 32x48 (height x width) or 32x48x3 (x channels), got {text!r}"
        )
    return (numbers[0], numbers[0]) if len(numbers) == 1 else tuple(numbers)


def check_call(data: str | None, image_size: str | None, *models: Path | None) -> None:
    """Check what can be checked before TensorFlow is loaded, which takes seconds.

    Raises:
        FileNotFoundError: there are no such images, or there is no such model.
        ValueError: a value that no data set takes.
    """
    from tfdq.data.loading import check_name

    size(image_size)
    if data is not None:
        check_name(data)
    for path in models:
        if path is not None and not path.exists():
            raise FileNotFoundError(
                f"no model at {str(path)!r}; give a .keras, .h5 or .tflite file (`tfdq train "
                "--out FOLDER` writes FOLDER/model.keras)"
            )


def load_data(
    data: str, data_dir: Path | None, limit: int | None, seed: int, image_size: str | None = None
) -> Dataset:
    """Return a data set, its test part cut to ``limit`` images."""
    from tfdq.data import load

    dataset = load(data, data_dir, image_size=size(image_size))
    if limit is not None and limit < len(dataset.y_test):
        dataset = dataset.subset(test=limit, seed=seed)
    return dataset


def test_images(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return the test images in [0, 1] and their labels."""
    from tfdq.experiments.images import scaled

    return scaled(dataset.x_test), dataset.y_test


def check_writable(path: Path, is_folder: bool) -> None:
    """Check that a file or folder can be written, before work is done for it; makes nothing.

    Args:
        path: which; it need not be there, nor the folder that it is in.
        is_folder: the path is of a folder; else of a file.

    Raises:
        ValueError: it is the other of the two, or something above it is a file.
        OSError: the nearest folder that there is can't be written.
    """
    if path.exists() and path.is_dir() != is_folder:
        kinds = ("a file", "a folder")
        raise ValueError(f"{str(path)!r} is {kinds[not is_folder]}; give {kinds[is_folder]}")
    folder = path if is_folder else path.absolute().parent
    while not folder.is_dir():
        if folder.exists():
            raise ValueError(f"{str(path)!r} can't be made: {str(folder)!r} is a file")
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{str(folder)!r} can't be written; give another place")


def open_model(path: Path, trust: bool = False, limits: Limits = DEFAULT) -> Any:
    """Return a Keras model, or the interpreter of a .tflite file.

    Args:
        path: of the file, or of a SavedModel folder.
        trust: run code that a Keras model holds.
        limits: what a .tflite file may cost.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a model, it holds code and is not trusted, or it costs more than its
            limits.
    """
    check_call(None, None, path)
    from tfdq.experiments.opening import check_weights, open_integer_file, open_keras_model

    if path.suffix == ".tflite":
        return open_integer_file(path, limits=limits)

    model = open_keras_model(path, trust)
    check_weights(model, str(path))
    return model
