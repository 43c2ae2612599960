"""Integer TensorFlow Lite files that compute exactly what was trained, for every bit width.

The public names are loaded on first use: `Interpreter`, `integer_only` and the command line's
``run``, ``benchmark``, ``inspect`` and ``selftest`` need neither TensorFlow nor tfdq, only NumPy
and a TensorFlow Lite runtime.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "ExportedModel": "tflite_export.export",
    "IntegerGraph": "tflite_export.graph",
    "IntegerProof": "tflite_export.proof",
    "IntegerTwin": "tflite_export.twin",
    "Interpreter": "tflite_export.runtime",
    "ParityError": "tflite_export.export",
    "ParityReport": "tflite_export.parity",
    "convert": "tflite_export.export",
    "integer_only": "tflite_export.proof",
    "round_biases": "tflite_export.biases",
    "selftest": "tflite_export.device",
    "verify": "tflite_export.parity",
}

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it."""
    if name not in _HOME:
        raise AttributeError(
            f"module 'tflite_export' has no attribute {name!r}; it has {sorted(__all__)}"
        )
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
