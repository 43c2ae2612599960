"""Open the models and the integer files that a command names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import tfdq
from tflite_export.ir.limits import DEFAULT, Limits


def open_keras_model(path: Path, trust: bool = False) -> Any:
    """Return the model of a file, of the Keras that wrote it, not compiled.

    A file of Keras 3 gives a model of Keras 3, on the backend that runs; every other one needs
    tf_keras.

    Args:
        path: a ``.keras`` or ``.h5`` file, or a SavedModel folder.
        trust: run code that a tf_keras model holds. Code in files of Keras 3 never is.

    Raises:
        FileNotFoundError: there is nothing at the path.
        UnsafeModelError: (a ValueError) the file is not merely a model of layers.
        ValueError: it is not a model that Keras can read.
        ModuleNotFoundError: it is a model of tf_keras, which is not installed.
    """
    from tfdq.model_files.keras3 import is_keras3_file, read_keras3

    if is_keras3_file(path):
        return read_keras3(path)
    return tfdq.load_model(path, compile=False, safe_mode=not trust)


def open_integer_file(path: Path, twin: bool = False, limits: Limits = DEFAULT) -> Any:
    """Return the interpreter of a ``.tflite`` file, or its integer twin, which has gradients.

    Args:
        path: of the file.
        twin: return the integer twin.
        limits: what the file may cost.

    Raises:
        ValueError: it is damaged, of another kind, or costs more than its limits; names the file.
    """
    from tflite_export import IntegerTwin, Interpreter

    return IntegerTwin(path, limits=limits) if twin else Interpreter(path, limits=limits)


def check_weights(model: Any, name: str) -> None:
    """Check that the weights of a model are numbers.

    Args:
        model: the model, of either Keras.
        name: what it is called in the error.

    Raises:
        ValueError: some are NaN or infinite; names the first.
    """
    for weight, values in zip(model.weights, model.get_weights(), strict=True):
        if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
            raise ValueError(
                f"{name!r} has NaN or infinite weights ({weight.name}): its training diverged; "
                "train it again with a lower learning rate"
            )
