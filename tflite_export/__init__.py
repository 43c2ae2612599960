"""Integer TensorFlow Lite files that compute exactly what was trained, for every bit width.

The public names are loaded on first use: `Interpreter`, `integer_only` and the command line's
``run``, ``benchmark``, ``inspect`` and ``selftest`` need neither TensorFlow nor tfdq, only NumPy
and a TensorFlow Lite runtime.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "ExportedModel": "tflite_export.conversion.export",
    "IntegerGraph": "tflite_export.ir.graph",
    "IntegerProof": "tflite_export.files.proof",
    "IntegerTwin": "tflite_export.twin.integer_twin",
    "Interpreter": "tflite_export.runtime.interpreter",
    "Limits": "tflite_export.ir.limits",
    "ParityError": "tflite_export.conversion.export",
    "ParityReport": "tflite_export.conversion.parity",
    "convert": "tflite_export.conversion.export",
    "integer_only": "tflite_export.files.proof",
    "round_biases": "tflite_export.lowering.biases",
    "selftest": "tflite_export.runtime.device",
    "with_golden": "tflite_export.runtime.golden",
    "verify": "tflite_export.conversion.parity",
}

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it."""
    if name not in _HOME:
        raise AttributeError(
            f"module 'tflite_export' has no attribute {name!r}; it has {sorted(__all__)}"
        )
    try:
        return getattr(import_module(_HOME[name]), name)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"tflite_export.{name} needs tfdq and a backend of Keras, which are not installed: "
            f'pip install "tfdq[tensorflow]", "tfdq[jax]" or "tfdq[torch]" ({error})'
        ) from error


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
