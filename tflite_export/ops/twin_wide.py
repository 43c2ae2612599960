"""Numbers of 64 bits inside a twin, also where Keras' backend has 32 bits by default."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import keras


def wide_numbers() -> AbstractContextManager[object]:
    """Return a context in which int64 and float64 are themselves on each backend.

    JAX rounds both to 32 bits unless it is told otherwise. What leaves the context must have 32
    bits again.
    """
    if keras.backend.backend() != "jax":
        return nullcontext()
    import jax

    return jax.enable_x64(True)
