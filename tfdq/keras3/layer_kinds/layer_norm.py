"""LayerNormalization, RMSNormalization, and the LayerScale of ConvNeXt.

``(x - mean) / deviation`` is the unit vector along ``x - mean`` times the root of the number of
channels. So a LayerNormalization is deployed as a mean over the channels (a 1 x 1 convolution), a
difference, a unit vector, and a 1 x 1 depthwise convolution with gamma and beta, each in int8. An
RMSNormalization is the last two. No epsilon is added; `tfdq.keras3.dropped_epsilon` tells where
that matters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops
from keras.src.applications.convnext import LayerScale

from tfdq.description import Affine, Computation, Shape
from tfdq.keras3.graph import Node
from tfdq.keras3.layer_kinds.affine import AffineLayer
from tfdq.keras3.layer_kinds.base import Flow, Phase, register
from tfdq.keras3.layer_kinds.kernel import channel_groups
from tfdq.keras3.layer_kinds.pointwise import QuantizedAffine
from tfdq.keras3.layer_kinds.registry import Kind, Request, Step, register_kind
from tfdq.keras3.layer_kinds.unit import UnitOfNorm
from tflite_export.ir.graph import BATCH, Convolution, Operator
from tflite_export.lowering import lower
from tflite_export.lowering.assemble import Affine as IntegerAffine
from tflite_export.lowering.grids import UNIT
from tflite_export.ops.l2_normalization import MOST_ENTRIES

_LARGEST_EPSILON = 1e-3
"""Keras' own of a LayerNormalization; 1e-7 is that of an RMSNormalization."""
_LARGEST_RANK = 4


@dataclass(frozen=True)
class ChannelMean(Computation):
    """The mean of each vector of the last axis, which stays with size 1."""


@lower.lowering(ChannelMean)
def lower_channel_mean(call: lower.Call) -> int:
    """Return the tensor of the means."""
    assembler, label = call.assembler, call.label
    image = shape = assembler.shape(call.source)
    channels = shape[-1]
    if len(shape) != 4:
        image = (BATCH, 1, int(np.prod(shape[1:-1])), channels)
    source = assembler.reshape(call.source, image, label)
    mean = IntegerAffine(
        np.full((1, 1, 1, channels), UNIT), np.full(1, 1.0 / (UNIT * channels)), np.zeros(1)
    )
    found = assembler.weighted(
        "CONV_2D", source, mean, call.target, Convolution(), (*image[:-1], 1), label
    )
    return assembler.reshape(found, call.shape, label)


@register
class ChannelMeans(keras.layers.Layer):
    """The mean of each vector of the last axis."""

    def call(self, x: Any) -> Any:
        """Return the means, ``(..., 1)``."""
        return ops.mean(x, axis=-1, keepdims=True)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the shape of the input with one channel."""
        return (*input_shape[:-1], 1)


class _ScaleOfChannels(keras.layers.Layer):
    """What a `ChannelScale` is, quantized or not.

    Args:
        gain: a number above 0.
        kept: from ``"gamma"`` and ``"beta"``, where they are, to regularizer and constraint.
    """

    def __init__(self, gain: float, kept: Mapping[str, Mapping[str, Any]], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.gain = float(gain)
        self.kept = {name: dict(sides) for name, sides in kept.items()}
        self.gamma = self.beta = None

    def add_scale(self, channels: int) -> None:
        """Create gamma and beta."""
        for name, sides in self.kept.items():
            weight = self.add_weight(
                name=name,
                shape=(channels,),
                initializer="ones" if name == "gamma" else "zeros",
                regularizer=keras.regularizers.get(sides["regularizer"]),
                constraint=keras.constraints.get(sides["constraint"]),
                dtype="float32",
                autocast=False,
            )
            setattr(self, name, weight)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {**super().get_config(), "gain": self.gain, "kept": self.kept}


@register
class ChannelScale(_ScaleOfChannels):
    """``gain * gamma * x + beta``, with a gamma and a beta for each channel."""

    def build(self, input_shape: Any) -> None:
        """Create gamma and beta."""
        self.add_scale(input_shape[-1])

    def call(self, x: Any) -> Any:
        """Return the scaled input."""
        x = x * self.gain if self.gamma is None else x * (self.gamma * self.gain)
        return x if self.beta is None else x + self.beta

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the shape of the input."""
        return input_shape


@register
class QuantizedChannelScale(_ScaleOfChannels, QuantizedAffine):
    """A `ChannelScale`, deployed as a 1 x 1 depthwise convolution."""

    variable_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {"scale": ("gamma", "beta")}

    def build(self, input_shape: Any) -> None:
        """Create gamma, beta, the range and the deployed constants."""
        super().build(input_shape)
        if "scale" not in self.shares:
            self.add_scale(self.deployed_factor.shape[0])

    def fits(self, built_for: Shape, other: Shape) -> bool:
        """Return whether there are as many channels, from which the gain is."""
        return built_for[-1] == other[-1]

    def affine_in_training(self, acc: Any, unit: Any, bias: Any, phase: Phase) -> tuple[Any, Any]:
        """Return the slope and the offset of each channel."""
        slope, offset = unit * self.gain * ops.ones(acc.shape[-1]), ops.zeros(acc.shape[-1])
        slope = slope if self.gamma is None else slope * self.gamma
        return slope, offset if self.beta is None else offset + self.beta

    def computation(self) -> Computation:
        """Return what the layer computes."""
        channels = self.deployed_factor.shape[0]
        factor, offset = (
            start if weight is None else np.asarray(ops.convert_to_numpy(weight), np.float64)
            for start, weight in (
                (np.ones(channels), self.gamma),
                (np.zeros(channels), self.beta),
            )
        )
        return Affine(self.gain * factor, offset)


@register
class QuantizedChannelMean(AffineLayer):
    """The mean of each vector of the last axis, on a grid of its own."""

    def result_shape(self, shapes: Any) -> Shape:
        """Return the shape of the source with one channel."""
        return (*shapes[:-1], 1)

    def deployed_shape(self, shape: Shape) -> tuple[int, ...]:
        """Return ``(channels, 1)``."""
        assert shape[-1] is not None
        return (shape[-1], 1)

    def stored_weights(self, operator: Operator, weights: np.ndarray) -> np.ndarray:
        """Return the weights of the one result, a row each."""
        return weights.reshape(-1, 1)

    def accumulate(self, q: Any, kernel: Any) -> Any:
        """Return the sums of the channels, times their weights."""
        return ops.sum(q * kernel[:, 0], axis=-1, keepdims=True)

    def parts(self, q: Any, kernel: Any) -> list[tuple[Any, Any]]:
        """Return the integers and weights of each group of channels."""
        ends = channel_groups(kernel.shape[0], self.splits)
        return [(q[..., a:b], kernel[a:b]) for a, b in ends]

    def numpy_parts(self, weights: np.ndarray) -> list[np.ndarray]:
        """Return the weights of each group of channels."""
        return [weights[a:b] for a, b in channel_groups(weights.shape[0], self.splits)]

    def train(self, flow: Any, phase: Phase) -> Flow:
        """Return the means in training."""
        q, step = flow
        sums = ops.sum(q, axis=-1, keepdims=True)
        slope, offset = self.affine_in_training(sums, step / q.shape[-1], None, phase)
        return self.round_to_grid(sums, slope, offset, phase)

    def computation(self) -> Computation:
        """Return what the layer computes."""
        return ChannelMean()


def _quantize_mean(request: Request) -> QuantizedChannelMean:
    return QuantizedChannelMean(output=request.output, **request.common)


def _quantize_scale(request: Request) -> QuantizedChannelScale:
    layer = request.layer
    return QuantizedChannelScale(
        gain=layer.gain,
        kept=layer.kept,
        output=request.output,
        activation=request.activation,
        trainable=layer.trainable,
        **request.common,
    )


def _load_scale(step: Step, layer: Any) -> None:
    for name in step.node.layer.kept:
        getattr(layer, name).assign(ops.convert_to_numpy(getattr(step.node.layer, name)))


def _scaled(layer: Any, gain: float, **weights: Any) -> ChannelScale:
    """Return a `ChannelScale` with a layer's name, regularizers and constraints.

    Args:
        layer: the layer.
        gain: above 0.
        weights: its variables of the names ``gamma`` and ``beta``; None: it has none.
    """
    config = layer.get_config()
    kept = {
        name: {side: config.get(f"{name}_{side}") for side in ("regularizer", "constraint")}
        for name, weight in weights.items()
        if weight is not None
    }
    scale = ChannelScale(gain, kept, trainable=layer.trainable, dtype="float32", name=layer.name)
    for name in kept:
        if not scale.built:
            scale.build((None, weights[name].shape[0]))
        getattr(scale, name).assign(ops.convert_to_numpy(weights[name]))
    return scale


def _units(node: Node) -> list[keras.layers.Layer]:
    """Return what gives the layer's source length 1, and its scale."""
    layer, channels = node.layer, node.shape[-1]
    assert channels is not None
    beta = getattr(layer, "beta", None)
    gamma = layer.gamma if isinstance(layer, keras.layers.LayerNormalization) else layer.scale
    return [
        UnitOfNorm(layer.name, layer.epsilon, name=f"{layer.name}_units"),
        _scaled(layer, float(channels) ** 0.5, gamma=gamma, beta=beta),
    ]


def _layer_norm(node: Node) -> list[keras.layers.Layer]:
    name = node.layer.name
    mean = ChannelMeans(name=f"{name}_mean")
    return [mean, keras.layers.Subtract(name=f"{name}_centred"), *_units(node)]


def _layer_scale(node: Node) -> list[keras.layers.Layer]:
    return [_scaled(node.layer, 1.0, gamma=node.layer.gamma)]


def _problem(node: Node) -> str | None:
    layer, rank = node.layer, len(node.shape)
    axes = layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]
    if [axis % rank for axis in axes] != [rank - 1]:
        return f"axis={layer.axis}; vectors of the last axis are normalized"
    if layer.epsilon > _LARGEST_EPSILON:
        return (
            f"epsilon={layer.epsilon:g}; at most {_LARGEST_EPSILON:g}, as integers are divided by "
            "their deviation itself"
        )
    if getattr(layer, "rms_scaling", False):
        return "rms_scaling=True, which divides by the variance; use RMSNormalization"
    if isinstance(layer, keras.layers.LayerNormalization) and node.shape[-1] == 1:
        return "vectors of one entry, which is its own mean, so that the result is beta alone"
    if rank > _LARGEST_RANK:
        return f"a tensor of rank {rank}; Reshape it first"
    if (node.shape[-1] or 0) > MOST_ENTRIES:
        return f"vectors of {node.shape[-1]} entries; at most {MOST_ENTRIES} are taken"
    return None


register_kind(Kind((ChannelMeans,), _quantize_mean))
register_kind(
    Kind(
        (ChannelScale,),
        _quantize_scale,
        takes_in=("activation",),
        load=_load_scale,
        group="scale",
    )
)
register_kind(Kind((keras.layers.LayerNormalization,), None, _problem, parts=_layer_norm))
register_kind(Kind((keras.layers.RMSNormalization,), None, _problem, parts=_units))
register_kind(Kind((LayerScale,), None, parts=_layer_scale))
