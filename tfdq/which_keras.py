"""Tell models of Keras 3 from those of tf_keras, without importing either."""

from __future__ import annotations

import sys
from importlib.util import find_spec


def is_keras3_model(model: object) -> bool:
    """Tell whether an object is a Keras 3 model (and not a tf_keras one)."""
    return _is_model_of("keras", model)


def is_tf_keras_model(model: object) -> bool:
    """Tell whether an object is a tf_keras model (and not a Keras 3 one)."""
    return _is_model_of("tf_keras", model)


def installed(package: str) -> bool:
    """Tell whether a package can be imported, without importing it."""
    return package in sys.modules or find_spec(package) is not None


def _is_model_of(library: str, model: object) -> bool:
    # A model can only be an instance of a Keras that is already imported.
    module = sys.modules.get(library)
    kind = getattr(module, "Model", None)
    return kind is not None and isinstance(model, kind)
