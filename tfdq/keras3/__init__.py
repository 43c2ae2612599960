"""Quantization-aware training of Keras 3 models on TensorFlow, JAX and PyTorch.

Importing this package registers its classes with Keras, so that ``keras.saving.load_model`` reads
saved models without further ado. It imports no backend but the one that Keras runs on.
"""

from tfdq.keras3.backends import check_backend

check_backend()

from tfdq.keras3.calibration import calibrate  # noqa: E402
from tfdq.keras3.layer_kinds import Kind, QuantizedLayer, Request, Step, register_kind  # noqa: E402
from tfdq.keras3.model import quantize_model  # noqa: E402
from tfdq.keras3.quantized_model import QuantizedModel  # noqa: E402

__all__ = [
    "Kind",
    "QuantizedLayer",
    "QuantizedModel",
    "Request",
    "Step",
    "calibrate",
    "quantize_model",
    "register_kind",
]
