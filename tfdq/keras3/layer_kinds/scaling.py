"""Fixed affine maps of each channel: Rescaling, Normalization, sums and products with numbers."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from tfdq.description import Affine, Computation, Shape
from tfdq.keras3.graph import Node
from tfdq.keras3.layer_kinds.base import Phase, QuantizedLayer, register
from tfdq.keras3.layer_kinds.pointwise import QuantizedAffine
from tfdq.keras3.layer_kinds.registry import (
    OPERATIONS,
    Kind,
    Request,
    register_activation,
    register_kind,
)
from tfdq.keras3.ranges import RangeSettings
from tfdq.settings.quantization import LINEAR_BITS

_CLOSE = 1e-6


@register
class Scaling(keras.layers.Layer):
    """``factor * x + offset``, what Rescaling, Normalization and numbers come to.

    Args:
        factor: a number, or one for each channel.
        offset: likewise.
    """

    def __init__(self, factor: Any, offset: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.factor = np.asarray(factor, np.float64)
        self.offset = np.asarray(offset, np.float64)

    def call(self, x: Any) -> Any:
        """Return the scaled input."""
        return x * ops.cast(self.factor, x.dtype) + ops.cast(self.offset, x.dtype)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the shape of the input."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        maps = {"factor": self.factor.tolist(), "offset": self.offset.tolist()}
        return {**super().get_config(), **maps}


@register
class QuantizedScaling(QuantizedAffine):
    """A fixed affine map of each channel, deployed as a 1 x 1 depthwise convolution.

    Args:
        factor: a number, or one for each channel.
        offset: likewise.
    """

    def __init__(self, factor: Any, offset: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.factor = np.asarray(factor, np.float64)
        self.offset = np.asarray(offset, np.float64)

    def fits(self, built_for: Shape, other: Shape) -> bool:
        """Return whether the numbers are those of each channel still, or one for all."""
        return self.factor.size == self.offset.size == 1 or built_for[-1] == other[-1]

    def affine_in_training(self, acc: Any, unit: Any, bias: Any, phase: Phase) -> tuple[Any, Any]:
        """Return the slope and the offset of each channel."""
        ones = ops.ones(acc.shape[-1])
        slope, offset = (
            ops.convert_to_tensor(value.astype(np.float32)) for value in (self.factor, self.offset)
        )
        return unit * ones * slope, ones * offset

    def computation(self) -> Computation:
        """Return what the layer computes."""
        return Affine(self.factor, self.offset)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        maps = {"factor": self.factor.tolist(), "offset": self.offset.tolist()}
        return {**super().get_config(), **maps}


def joined(first: Scaling, second: Scaling) -> Scaling:
    """Return one affine map for two that follow each other."""
    return Scaling(
        first.factor * second.factor,
        first.offset * second.factor + second.offset,
        name=second.name,
    )


def hard_sigmoid_of(first: Scaling, second: Scaling) -> keras.layers.Layer | None:
    """Return the activation that a map, a ReLU6 and a map are: ``relu6(x + 3) / 6``, or None."""
    found = (first.factor, first.offset, second.factor, second.offset)
    if all(
        np.allclose(value, wanted, rtol=_CLOSE, atol=_CLOSE)
        for value, wanted in zip(found, (1.0, 3.0, 1.0 / 6.0, 0.0), strict=True)
    ):
        return keras.layers.Activation("hard_sigmoid", name=second.name)
    return None


def hard_sigmoid(**common: Any) -> QuantizedLayer:
    """Return ``relu6(x + 3) / 6`` in multiples of 1/255: the ends of the grid are its bounds."""
    output = RangeSettings(LINEAR_BITS, nonnegative=True, fixed=(0.0, 1.0))
    return QuantizedScaling(1.0 / 6.0, 0.5, output=output, **common)


def hard_tanh(**common: Any) -> QuantizedLayer:
    """Return ``clip(x, -1, 1)`` in multiples of 1/128: the ends of the grid are -1 and 127/128."""
    output = RangeSettings(LINEAR_BITS, fixed=(-1.0, 127 / 128))
    return QuantizedScaling(1.0, 0.0, output=output, **common)


def by_number(node: Node) -> list[keras.layers.Layer] | None:
    """Return the parts of an operation on a tensor and a number; None: it is on two tensors."""
    found = _map_of(node) if len(node.inputs) == 1 else None
    if isinstance(found, str) or found is None:
        return None
    return [Scaling(*found, name=node.layer.name)]


def by_number_problem(node: Node) -> str | None:
    """Return what keeps an operation on a tensor and a number from being quantized, or None."""
    found = _map_of(node)
    return found if isinstance(found, str) else None


def _map_of(node: Node) -> tuple[np.ndarray, np.ndarray] | str:
    """Return factor and offset of an operation on one tensor, or what is wrong with it."""
    kind, arguments = type(node.layer), node.arguments
    if kind in OPERATIONS["negative"]:
        return np.array(-1.0), np.array(0.0)
    if len(arguments) != 2:
        return "a merge of one tensor"
    given = [value for value in arguments if not isinstance(value, keras.KerasTensor)]
    if not given:
        # The same tensor twice is two sources to the graph, so there is a number.
        return "an operation on one tensor"
    if isinstance(given[0], keras.Variable):
        return "an operation with a variable, which no layer trains; use a layer with a weight"
    number = np.asarray(ops.convert_to_numpy(given[0]), np.float64)
    channels = node.shape[-1]
    if number.size not in (1, channels) or (number.size > 1 and number.shape[-1] != channels):
        return (
            f"a constant of shape {number.shape}; a number, or one for each of the {channels} "
            "channels, is quantized"
        )
    number = number.reshape(() if number.size == 1 else (-1,))
    left = isinstance(arguments[0], keras.KerasTensor)
    one, none = np.array(1.0), np.array(0.0)
    if kind in OPERATIONS["add"]:
        return one, number
    if kind in OPERATIONS["subtract"]:
        return (one, -number) if left else (-one, number)
    if kind in OPERATIONS["multiply"]:
        return number, none
    if not left:
        return "a division by a tensor, which no integer kernel computes"
    if not number.all():
        return "a division by 0"
    return 1.0 / number, none


def _quantize(request: Request) -> QuantizedScaling:
    return QuantizedScaling(
        request.layer.factor,
        request.layer.offset,
        output=request.output,
        activation=request.activation,
        **request.common,
    )


def _rescaling(node: Node) -> list[keras.layers.Layer]:
    layer = node.layer
    return [Scaling(layer.scale, layer.offset, name=layer.name)]


def _rescaling_problem(node: Node) -> str | None:
    for name in ("scale", "offset"):
        shape = np.shape(getattr(node.layer, name))
        if shape not in ((), (node.shape[-1],)):
            return f"a {name} of shape {shape}; use a number, or one for each channel"
    return None


def _normalization(node: Node) -> list[keras.layers.Layer]:
    layer = node.layer
    mean, variance = (
        np.asarray(ops.convert_to_numpy(value), np.float64).reshape(-1)
        for value in (layer.mean, layer.variance)
    )
    deviation = np.maximum(np.sqrt(variance), keras.config.epsilon())
    if layer.invert:
        return [Scaling(deviation, mean, name=layer.name)]
    return [Scaling(1.0 / deviation, -mean / deviation, name=layer.name)]


def _normalization_problem(node: Node) -> str | None:
    axes = [axis % len(node.shape) for axis in node.layer.axis]
    if axes not in ([], [len(node.shape) - 1]):
        return f"a Normalization over axes {node.layer.axis}; use axis=-1 or None"
    return None


register_kind(Kind((Scaling,), _quantize, role="scaling", takes_in=("activation",)))
register_kind(
    Kind((keras.layers.Rescaling,), None, _rescaling_problem, parts=_rescaling, role="scaling")
)
register_kind(
    Kind((keras.layers.Normalization,), None, _normalization_problem, parts=_normalization)
)
register_kind(
    Kind((*OPERATIONS["divide"], *OPERATIONS["negative"]), None, by_number_problem, parts=by_number)
)
register_activation("hard_sigmoid", hard_sigmoid)
register_activation("hard_tanh", hard_tanh)
