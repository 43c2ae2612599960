"""The Keras backends that the quantized layers run on."""

from __future__ import annotations

import keras

from tfdq._with_keras import BACKENDS


def check_backend() -> str:
    """Return the name of the running Keras backend.

    Raises:
        ImportError: quantized layers cannot be trained on it.
    """
    name = keras.backend.backend()
    if name not in BACKENDS:
        raise ImportError(
            f"Keras runs on the {name!r} backend, on which nothing can be trained; set the "
            f"environment variable KERAS_BACKEND to one of {', '.join(BACKENDS)} before Keras is "
            "imported"
        )
    return str(name)
