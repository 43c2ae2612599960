"""Files of Keras 3: what they are told by, and how they are read."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import keras

from tfdq.model_files.configuration import Registry, UnsafeModelError
from tfdq.model_files.containers import checked_copy

# Bytes; Keras writes less than a hundred.
_LARGEST_METADATA = 1 << 16
_LARGEST_CONFIG = 64 << 20


def holds_quantized_keras3(path: str | Path) -> bool:
    """Tell whether a file is a `.keras` archive of Keras 3 with a model of `tfdq.keras3`."""
    if not is_keras3_file(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive, archive.open("config.json") as stored:
            config = json.loads(stored.read(_LARGEST_CONFIG))
    except (OSError, zipfile.BadZipFile, KeyError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and config.get("registered_name") == "tfdq>QuantizedModel"


def is_keras3_file(path: str | Path) -> bool:
    """Tell whether a file is a `.keras` archive written by Keras 3 (tf_keras writes them too)."""
    if not Path(path).is_file():
        return False
    try:
        with zipfile.ZipFile(path) as archive, archive.open("metadata.json") as stored:
            metadata = json.loads(stored.read(_LARGEST_METADATA))
    except (OSError, zipfile.BadZipFile, KeyError, ValueError, RecursionError):
        return False
    version = metadata.get("keras_version") if isinstance(metadata, dict) else None
    return isinstance(version, str) and version.split(".")[0] == "3"


def read_keras3(path: str | Path) -> Any:
    """Load a `.keras` file of Keras 3 as it is, not compiled, checked and in safe mode.

    Raises:
        FileNotFoundError: If there is no such file.
        UnsafeModelError: If it is not merely a model of layers.
        ValueError: If Keras can't read it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with checked_copy(path, Registry(keras.saving)) as copy:
            return keras.saving.load_model(copy, compile=False, safe_mode=True)
    except UnsafeModelError as error:
        raise UnsafeModelError(
            f"Keras {keras.__version__} can't load {path}: {error}. Rebuild it with layers of "
            "Keras; or, in Python, load it with Keras and give the model itself to "
            "tfdq.from_keras3, with custom_layers for those of your own."
        ) from error
    except (ValueError, TypeError, OSError, KeyError) as error:
        raise ValueError(f"Keras {keras.__version__} can't load {path}: {error}") from error
