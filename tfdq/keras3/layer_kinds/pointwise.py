"""Layers that map each channel by itself: BatchNormalization and ReLU on their own."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from tfdq.description import Activation, Affine, Computation, Shape
from tfdq.keras3.graph import Node
from tfdq.keras3.layer_kinds.affine import AffineLayer
from tfdq.keras3.layer_kinds.base import (
    AT_REST,
    Box,
    Flow,
    Phase,
    QuantizedLayer,
    register,
)
from tfdq.keras3.layer_kinds.registry import (
    OPERATIONS,
    OWN_LAYER,
    Kind,
    Request,
    activation_of,
    activation_problem,
    register_kind,
)
from tfdq.keras3.ranges import RangeSettings
from tflite_export.ir.graph import Operator


@register
class QuantizedAffine(AffineLayer):
    """A BatchNormalization that no layer before it took in, or a ReLU, or both.

    It is deployed as a 1 x 1 depthwise convolution.
    """

    def result_shape(self, shapes: Any) -> Shape:
        """Return the shape of the source."""
        return tuple(shapes)

    def deployed_shape(self, shape: Shape) -> tuple[int, ...]:
        """Return ``(channels,)``."""
        assert shape[-1] is not None
        return (shape[-1],)

    def stored_weights(self, operator: Operator, weights: np.ndarray) -> np.ndarray:
        """Return the weight of each channel."""
        return weights.reshape(-1)

    def accumulate(self, q: Any, kernel: Any) -> Any:
        """Return the integers times the weight of their channel."""
        return q * kernel

    def train(self, flow: Any, phase: Phase) -> Flow:
        """Return the result in training."""
        q, step = flow
        slope, offset = self.affine_in_training(q, step, None, phase)
        return self.round_to_grid(q, slope, offset, phase)

    def interval(self, box: Any) -> Box:
        """Return the results of the ends."""
        (low, step), (high, _) = box
        slope, offset = self.affine_in_training(low, step, None, AT_REST)
        return self.round_box(low, high, slope, offset)

    def numpy_parts(self, weights: np.ndarray) -> list[np.ndarray]:
        """Return the weights, a column each."""
        return [weights[None]]

    def computation(self) -> Computation:
        """Return what the layer computes."""
        return Activation() if self.norm is None else Affine(*self.folded(None))


def _norm_problem(node: Node) -> str | None:
    layer = node.layer
    axes = list(layer.axis) if isinstance(layer.axis, (list, tuple)) else [layer.axis]
    if [axis % len(node.shape) for axis in axes] != [len(node.shape) - 1]:
        return "a BatchNormalization over another axis than the last"
    if getattr(layer, "renorm", False):
        return "renorm=True; only plain batch statistics are folded"
    if getattr(layer, "synchronized", False):
        return "synchronized=True; each replica would follow the statistics of its own batches"
    return None


def norm_arguments(request: Request, norm: Any, inference: bool) -> dict[str, Any]:
    """Return the arguments that describe a BatchNormalization to an `AffineLayer`."""
    config = norm.get_config()
    kept = {name: config[name] for name in ("momentum", "epsilon", "center", "scale")}
    for name in ("gamma", "beta"):
        for constraint in ("regularizer", "constraint"):
            kept[f"{name}_{constraint}"] = config.get(f"{name}_{constraint}")
    kept["momentum"] = request.settings.norm_momentum(float(kept["momentum"]))
    follows = bool(norm.trainable) and not inference
    return {"norm": kept, "norm_follows": follows}


def load_norm(norm: Any, layer: Any) -> None:
    """Copy a BatchNormalization's variables into an `AffineLayer`."""
    pairs = [(layer.moving_mean, norm.moving_mean), (layer.moving_variance, norm.moving_variance)]
    pairs += [(layer.gamma, norm.gamma)] if norm.scale else []
    pairs += [(layer.beta, norm.beta)] if norm.center else []
    for own, other in pairs:
        own.assign(ops.convert_to_numpy(other))


def _quantize_norm(request: Request) -> QuantizedAffine:
    layer = request.layer
    arguments = norm_arguments(request, layer, request.step.node.inference)
    return QuantizedAffine(
        output=request.output,
        activation=request.activation,
        trainable=layer.trainable,
        **arguments,
        **request.common,
    )


def own_layer(activation: str, **common: Any) -> QuantizedLayer:
    """Return the layer that an activation of `OWN_LAYER` becomes."""
    return OWN_LAYER[activation](**common)


def _quantize_activation(request: Request) -> QuantizedLayer:
    if request.step.activation in OWN_LAYER:
        return own_layer(request.step.activation, **request.common)
    return QuantizedAffine(output=request.output, activation=request.activation, **request.common)


@register
class Clipped(keras.layers.Layer):
    """``min(max(x, 0), bound)``.

    Args:
        bound: the largest value, above 0.
    """

    def __init__(self, bound: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.bound = float(bound)

    def call(self, x: Any) -> Any:
        """Return the clipped values."""
        return ops.clip(x, 0.0, self.bound)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the shape of the input."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {**super().get_config(), "bound": self.bound}


def _quantize_clipped(request: Request) -> QuantizedAffine:
    # The ends of the grid are the bounds.
    bits = request.bits[1]
    output = RangeSettings(bits, nonnegative=True, fixed=(0.0, request.layer.bound))
    return QuantizedAffine(output=output, activation="relu", **request.common)


def _relu_parts(node: Node) -> list[keras.layers.Layer] | None:
    """Return what a ReLU with a bound of its own, or with a slope below 0, is; else None."""
    layer = node.layer
    if not isinstance(layer, keras.layers.ReLU) or layer.threshold:
        return None
    if layer.negative_slope and layer.max_value is None:
        return [keras.layers.LeakyReLU(layer.negative_slope, name=layer.name)]
    if not layer.negative_slope and layer.max_value not in (None, 6):
        return [Clipped(layer.max_value, name=layer.name)]
    return None


def _activation_problem(node: Node) -> str | None:
    if activation_of(node.layer) is not None or _relu_parts(node) is not None:
        return None
    if isinstance(node.layer, keras.layers.ReLU):
        return "a ReLU with a threshold, or with both max_value and negative_slope"
    if isinstance(node.layer, keras.layers.Softmax):
        return "only a softmax over the last axis is quantized"
    return activation_problem(node.layer)


register_kind(
    Kind(
        (keras.layers.BatchNormalization,),
        _quantize_norm,
        _norm_problem,
        role="norm",
        takes_in=("activation",),
        load=lambda step, layer: load_norm(step.node.layer, layer),
        group="norm",
    )
)
register_kind(
    Kind(
        (
            keras.layers.ReLU,
            keras.layers.Activation,
            keras.layers.Softmax,
            *OPERATIONS["activation"],
        ),
        _quantize_activation,
        _activation_problem,
        role="activation",
        parts=_relu_parts,
    )
)
register_kind(Kind((Clipped,), _quantize_clipped))
