"""Make a Keras model quantization-aware and defensive.

Importing this package registers its classes with Keras, so that ``tf_keras.models.load_model``
reads saved models without further ado.
"""

from tfdq.grid import Grid
from tfdq.lagging_statistics import LaggingStatisticsWarning
from tfdq.quantization.configs import DefensiveQuantizeConfig
from tfdq.quantization.graph import Graph, Node, read_graph, walk
from tfdq.quantization.keras3 import from_keras3
from tfdq.quantization.layers import (
    ConvexCombination,
    FusedAdd,
    FusedBatchNormalization,
    FusedConv2D,
    FusedDense,
    FusedDepthwiseConv2D,
    FusedReLU,
)
from tfdq.quantization.model import calibrate, quantize_model
from tfdq.quantization.quantized_model import QuantizedModel
from tfdq.quantization.quantizers import (
    FixedRangeQuantizer,
    KernelQuantizer,
    ObservedRangeQuantizer,
)
from tfdq.quantization.scheme import DefensiveQuantizeScheme
from tfdq.quantization.serialization import load_model, quantize_scope
from tfdq.quantization.settings import Settings
from tfdq.quantization.squeezing import BitDepthSqueeze, MedianSqueeze
from tfdq.quantization.tf_keras_to_keras3 import to_keras3
from tfdq.quantization.wrapper import InputQuantizer, PortableQuantizeWrapper, QuantizeWrapper

__all__ = [
    "BitDepthSqueeze",
    "ConvexCombination",
    "DefensiveQuantizeConfig",
    "DefensiveQuantizeScheme",
    "FixedRangeQuantizer",
    "FusedAdd",
    "FusedBatchNormalization",
    "FusedConv2D",
    "FusedDense",
    "FusedDepthwiseConv2D",
    "FusedReLU",
    "Graph",
    "Grid",
    "InputQuantizer",
    "KernelQuantizer",
    "LaggingStatisticsWarning",
    "MedianSqueeze",
    "Node",
    "ObservedRangeQuantizer",
    "PortableQuantizeWrapper",
    "QuantizeWrapper",
    "QuantizedModel",
    "Settings",
    "calibrate",
    "from_keras3",
    "load_model",
    "quantize_model",
    "quantize_scope",
    "read_graph",
    "to_keras3",
    "walk",
]
