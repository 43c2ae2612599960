"""LeakyReLU: the result stays on the grid of its source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from tfdq.description import Computation, Shape
from tfdq.keras3.graph import Node
from tfdq.keras3.layer_kinds.base import register
from tfdq.keras3.layer_kinds.registry import Kind, Request, register_kind
from tfdq.keras3.layer_kinds.shape import MovingLayer
from tfdq.keras3.rounding import with_gradient_of
from tflite_export.lowering.lower import Call, lowering
from tflite_export.ops.leaky_relu import UNIT, LeakyRelu


@dataclass(frozen=True)
class LeakyActivation(Computation):
    """What is negative times a slope.

    Attributes:
        slope: a whole multiple of 1/256 in (0, 1].
    """

    slope: float


@lowering(LeakyActivation)
def lower_leaky_activation(call: Call) -> int:
    """Return the tensor of the result, on the source's grid."""
    assembler = call.assembler
    output = assembler.value(call.label, call.shape, assembler.grid(call.source))
    options = LeakyRelu(call.computation.slope)
    return assembler.emit("LEAKY_RELU", (call.source,), output, options, call.label)


@register
class QuantizedLeakyReLU(MovingLayer):
    """Negative integers times a slope, which the default kernels round to a multiple of 1/256.

    Args:
        slope: below 0.
    """

    def __init__(self, slope: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.slope = float(slope)
        self.numerator = deployed_numerator(self.slope)

    def move(self, q: Any) -> Any:
        """Return the rounded result, ties upward, with the gradient of no rounding."""
        # Whole numbers below 2^24 and powers of two: exact in float32, however it is compiled.
        steps = q * ops.where(q >= 0, float(UNIT), float(self.numerator)) / float(UNIT)
        return with_gradient_of(ops.floor(ops.stop_gradient(steps) + 0.5), steps)

    def result_shape(self, shapes: Any) -> Shape:
        """Return the shape of the source."""
        return tuple(shapes)

    def computation(self) -> Computation:
        """Return what the layer computes."""
        return LeakyActivation(self.numerator / UNIT)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {**super().get_config(), "slope": self.slope}


def deployed_numerator(slope: float) -> int:
    """Return the multiple of 1/256 that stands for a slope."""
    return int(np.rint(np.float32(slope) * np.float32(UNIT)))


def _quantize(request: Request) -> QuantizedLeakyReLU:
    return QuantizedLeakyReLU(slope=request.layer.negative_slope, **request.common)


def _problem(node: Node) -> str | None:
    slope = node.layer.negative_slope
    if not 1 <= deployed_numerator(slope) <= UNIT:
        return (
            f"negative_slope={slope}; the integer runtime takes 1/{UNIT} to 1 (use ReLU for a "
            "slope of 0)"
        )
    return None


register_kind(Kind((keras.layers.LeakyReLU,), _quantize, _problem))
