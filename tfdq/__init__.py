"""tfdq: defensive quantization for Keras.

The public names are loaded on first use, so that ``import tfdq`` does not load TensorFlow.
"""

from importlib import import_module
from typing import Any

from tfdq._version import __version__

_HOME = {
    "AdversarialTraining": "tfdq.robustness",
    "ConvexCombination": "tfdq.quantization",
    "DefensiveQuantizeScheme": "tfdq.quantization",
    "OrthogonalityRegularizer": "tfdq.lipschitz.regularizers",
    "calibrate": "tfdq.quantization",
    "certify": "tfdq.lipschitz",
    "from_keras3": "tfdq.quantization",
    "load_model": "tfdq.quantization",
    "quantize_model": "tfdq.quantization",
    "quantize_scope": "tfdq.quantization",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it."""
    if name not in _HOME:
        raise AttributeError(f"module 'tfdq' has no attribute {name!r}; it has {sorted(__all__)}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
