"""Control, measure and certify how much a network amplifies a perturbation.

The public names are loaded on first use, so that importing the package does not load TensorFlow.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "BatchNormBound": "training",
    "Certificate": "certificate",
    "ConvolutionOrthogonalityRegularizer": "convolution_regularizers",
    "IntervalTraining": "interval_training",
    "LipschitzLogger": "log_callback",
    "LipschitzReport": "network",
    "OrthogonalityRegularizer": "regularizers",
    "ParsevalRetraction": "training",
    "PenaltySchedule": "training",
    "Ramp": "schedules",
    "SRIPRegularizer": "spectral_regularizers",
    "SmoothingSettings": "smoothing",
    "SpectralRegularizer": "spectral_regularizers",
    "certify": "certification",
    "conv_norm": "norms",
    "gaussian_augmentation": "smoothing",
    "get_regularizer": "names",
    "kernel_norm": "norms",
    "layer_spectrum": "norms",
    "local_lipschitz": "local_search",
    "randomized_smoothing": "smoothing",
    "report": "network",
    "smoothed_prediction": "smoothing",
}

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it."""
    if name not in _HOME:
        raise AttributeError(
            f"module 'tfdq.lipschitz' has no attribute {name!r}; it has {sorted(__all__)}"
        )
    return getattr(import_module(f"tfdq.lipschitz.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
