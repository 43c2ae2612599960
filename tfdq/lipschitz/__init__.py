"""Control, measure and certify how much a network amplifies a perturbation.

The public names are loaded on first use, so that importing the package does not load TensorFlow.
"""

from tfdq._first_use import loaded_on_first_use

_HOME = {
    "BatchNormBound": "tfdq.lipschitz.training",
    "Certificate": "tfdq.lipschitz.certificate",
    "ConvolutionOrthogonalityRegularizer": "tfdq.lipschitz.convolution_regularizers",
    "IntervalTraining": "tfdq.lipschitz.interval_training",
    "LipschitzLogger": "tfdq.lipschitz.log_callback",
    "LipschitzReport": "tfdq.lipschitz.layer_report",
    "OrthogonalityRegularizer": "tfdq.lipschitz.regularizers",
    "ParsevalRetraction": "tfdq.lipschitz.training",
    "PenaltySchedule": "tfdq.lipschitz.training",
    "Ramp": "tfdq.lipschitz.schedules",
    "SRIPRegularizer": "tfdq.lipschitz.spectral_regularizers",
    "SmoothingSettings": "tfdq.lipschitz.smoothing",
    "SpectralRegularizer": "tfdq.lipschitz.spectral_regularizers",
    "certify": "tfdq.lipschitz.certification",
    "conv_norm": "tfdq.lipschitz.norms",
    "gaussian_augmentation": "tfdq.lipschitz.smoothing",
    "get_regularizer": "tfdq.lipschitz.names",
    "kernel_norm": "tfdq.lipschitz.norms",
    "layer_spectrum": "tfdq.lipschitz.norms",
    "local_lipschitz": "tfdq.lipschitz.local_search",
    "randomized_smoothing": "tfdq.lipschitz.smoothing",
    "report": "tfdq.lipschitz.network",
    "smoothed_prediction": "tfdq.lipschitz.smoothing",
}

__all__ = [*_HOME]

__getattr__, __dir__ = loaded_on_first_use(__name__, _HOME)
