"""Penalties and callbacks that keep the layers of a network from expanding.

The public names are loaded on first use, so that importing the package does not load TensorFlow.
"""

from tfdq._first_use import loaded_on_first_use

_HOME = {
    "BatchNormBound": "tfdq.penalties.callbacks",
    "ConvolutionOrthogonalityRegularizer": "tfdq.penalties.convolution_regularizers",
    "OrthogonalityRegularizer": "tfdq.penalties.regularizers",
    "ParsevalRetraction": "tfdq.penalties.callbacks",
    "PenaltySchedule": "tfdq.penalties.callbacks",
    "Ramp": "tfdq.penalties.schedules",
    "SRIPRegularizer": "tfdq.penalties.spectral_regularizers",
    "SpectralRegularizer": "tfdq.penalties.spectral_regularizers",
    "get_regularizer": "tfdq.penalties.names",
}

__all__ = [*_HOME]

__getattr__, __dir__ = loaded_on_first_use(__name__, _HOME)
