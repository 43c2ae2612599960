"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import logging
import os
import sys
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import numpy as np

    from tfdq.data import Dataset

DataOption = Annotated[
    str,
    typer.Option(
        "--data",
        help="digits, fashion_mnist, mnist, cifar10, cifar100, svhn_cropped, a FILE.npz with "
        "x_train, y_train, x_test, y_test, or a folder of images.",
        metavar="NAME|PATH",
    ),
]
DataDirOption = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Where TFDS data sets are prepared.", show_default=False),
]
SeedOption = Annotated[int, typer.Option("--seed", help="Of every random choice.", min=0)]
LimitOption = Annotated[
    int | None, typer.Option("--limit", help="Test images to use, drawn at random.", min=1)
]
EpsOption = Annotated[
    str, typer.Option("--eps", help="Strength, images in [0, 1]: 8/255 or 0.03.", metavar="EPS")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


def number(text: str) -> float:
    """Return the value of ``8/255`` or ``0.03``.

    Raises:
        ValueError: it is no such number, or is not above 0.
    """
    try:
        value = float(Fraction(text))
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(f"{text!r} is no number; write 8/255 or 0.03") from error
    if value <= 0:
        raise ValueError(f"eps must be > 0, got {text!r}")
    return value


def quiet() -> None:
    """Load TensorFlow and LiteRT without their start-up notices, unless ``--debug`` is given.

    The notices come from compiled code and heed no setting, so the file descriptor of stderr is
    turned away while the libraries load.
    """
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    logging.getLogger("absl").setLevel(logging.ERROR)
    if os.environ.get("TFDQ_DEBUG"):
        return
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            import tensorflow as tf

            import tflite_export.runtime

            tf.config.list_logical_devices()
            tflite_export.runtime.find_runtime()
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def load_data(data: str, data_dir: Path | None, limit: int | None, seed: int) -> Dataset:
    """Return a data set, its test part cut to ``limit`` images."""
    from tfdq.data import load

    dataset = load(data, data_dir)
    if limit is not None and limit < len(dataset.y_test):
        dataset = dataset.subset(test=limit, seed=seed)
    return dataset


def test_images(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return the test images in [0, 1] and their labels."""
    from tfdq.experiments.training import scaled

    return scaled(dataset.x_test), dataset.y_test


def open_model(path: Path) -> Any:
    """Return a Keras model, or the interpreter of a .tflite file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a model.
    """
    if path.suffix == ".tflite":
        if not path.exists():
            raise FileNotFoundError(f"no model at {str(path)!r}")
        from tflite_export import Interpreter

        return Interpreter(path)
    from tfdq.quantization import load_model
    from tfdq.quantization.keras3 import is_keras3_file, load_keras3

    return load_keras3(path) if is_keras3_file(path) else load_model(path, compile=False)
