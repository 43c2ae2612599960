"""Measure and prove how much a network amplifies a perturbation, and certify its decisions.

The public names are loaded on first use, so that importing the package does not load TensorFlow.
"""

from tfdq._first_use import loaded_on_first_use

_HOME = {
    "Certificate": "tfdq.certificates.certificate",
    "CompleteCertificate": "tfdq.certificates.complete",
    "Decision": "tfdq.certificates.complete",
    "IntervalTraining": "tfdq.certificates.either_interval_training",
    "LipschitzLogger": "tfdq.certificates.log_callback",
    "LipschitzReport": "tfdq.certificates.layer_report",
    "SmoothingSettings": "tfdq.certificates.smoothing",
    "certify": "tfdq.certificates.certification",
    "conv_norm": "tfdq.certificates.norms",
    "gaussian_augmentation": "tfdq.certificates.smoothing",
    "kernel_norm": "tfdq.certificates.norms",
    "layer_spectrum": "tfdq.certificates.norms",
    "lipschitz_report": "tfdq.certificates.network",
    "local_lipschitz": "tfdq.certificates.local_search",
    "randomized_smoothing": "tfdq.certificates.smoothing",
    "smoothed_prediction": "tfdq.certificates.smoothing",
}

__all__ = [*_HOME]

__getattr__, __dir__ = loaded_on_first_use(__name__, _HOME)
