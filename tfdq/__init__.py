"""tfdq: defensive quantization for Keras.

The public names are loaded on first use, so that ``import tfdq`` does not load TensorFlow.
"""

from tfdq._first_use import loaded_on_first_use
from tfdq._version import __version__
from tfdq._with_keras import register_with_keras

_HOME = {
    "AdversarialTraining": "tfdq.robustness",
    "ConvexCombination": "tfdq.quantization",
    "DefensiveQuantizeScheme": "tfdq.quantization",
    "OrthogonalityRegularizer": "tfdq.penalties.regularizers",
    "calibrate": "tfdq.either_keras",
    "certify": "tfdq.certificates",
    "from_keras3": "tfdq.quantization",
    "load_model": "tfdq.either_keras",
    "quantize_model": "tfdq.either_keras",
    "quantize_scope": "tfdq.quantization",
    "to_keras3": "tfdq.quantization",
    "zoo": "tfdq.zoo",
}

__all__ = ["__version__", *_HOME]

__getattr__, __dir__ = loaded_on_first_use(__name__, _HOME)

register_with_keras()
