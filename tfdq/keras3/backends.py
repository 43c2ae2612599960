"""The Keras backends that the quantized layers run on."""

from __future__ import annotations

import os

from tfdq._with_keras import BACKENDS


def check_backend() -> str:
    """Return the name of the running Keras backend.

    Raises:
        ImportError: quantized layers cannot be trained on it.
    """
    # Asked for first: Keras itself may not be importable on a backend that is refused anyway.
    _refuse_other(os.environ.get("KERAS_BACKEND") or BACKENDS[0])
    import keras

    name = str(keras.backend.backend())
    _refuse_other(name)
    return name


def _refuse_other(name: str) -> None:
    if name not in BACKENDS:
        raise ImportError(
            f"Keras runs on the {name!r} backend, on which nothing can be trained; set the "
            f"environment variable KERAS_BACKEND to one of {', '.join(BACKENDS)} before Keras is "
            "imported"
        )
