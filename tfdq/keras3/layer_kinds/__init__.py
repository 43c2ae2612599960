"""The kinds of layers that can be quantized, one file for each family.

A module here that calls `register_kind` is a kind: being there is all it takes.
"""

from importlib import import_module
from pkgutil import iter_modules

from tfdq.keras3.layer_kinds.average import (
    QuantizedAveragePooling2D,
    QuantizedGlobalAveragePooling2D,
)
from tfdq.keras3.layer_kinds.base import QuantizedLayer
from tfdq.keras3.layer_kinds.convolution import QuantizedConv2D, QuantizedDepthwiseConv2D
from tfdq.keras3.layer_kinds.curve import QuantizedCurve
from tfdq.keras3.layer_kinds.dense import QuantizedDense
from tfdq.keras3.layer_kinds.input import InputQuantizer
from tfdq.keras3.layer_kinds.merge import QuantizedAdd
from tfdq.keras3.layer_kinds.noise import TrainingOnly
from tfdq.keras3.layer_kinds.one_grid import QuantizedConcatenate
from tfdq.keras3.layer_kinds.pointwise import QuantizedAffine
from tfdq.keras3.layer_kinds.registry import KINDS, Kind, Request, Step, register_kind
from tfdq.keras3.layer_kinds.shape import (
    QuantizedGlobalMaxPooling2D,
    QuantizedIdentity,
    QuantizedMaxPooling2D,
    QuantizedReshape,
    QuantizedZeroPadding2D,
)
from tfdq.keras3.layer_kinds.softmax import QuantizedSoftmax

__all__ = [
    "KINDS",
    "InputQuantizer",
    "Kind",
    "QuantizedAdd",
    "QuantizedAffine",
    "QuantizedAveragePooling2D",
    "QuantizedConcatenate",
    "QuantizedConv2D",
    "QuantizedCurve",
    "QuantizedDense",
    "QuantizedDepthwiseConv2D",
    "QuantizedGlobalAveragePooling2D",
    "QuantizedGlobalMaxPooling2D",
    "QuantizedIdentity",
    "QuantizedLayer",
    "QuantizedMaxPooling2D",
    "QuantizedReshape",
    "QuantizedSoftmax",
    "QuantizedZeroPadding2D",
    "Request",
    "Step",
    "TrainingOnly",
    "register_kind",
]

for _entry in iter_modules(__path__):
    import_module(f"{__name__}.{_entry.name}")
