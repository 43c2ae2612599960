"""Convolutions and dense layers: a quantized kernel, its bias and BatchNorm, and the penalty."""

from __future__ import annotations

from abc import abstractmethod
from itertools import pairwise
from typing import Any

import keras
import numpy as np
from keras import ops

from tfdq.description import Computation, Conv2D, Dense, DepthwiseConv2D, Kernel, Shape
from tfdq.keras3.graph import Node
from tfdq.keras3.layer_kinds.affine import AffineLayer
from tfdq.keras3.layer_kinds.base import Flow, Phase, integer_shape, register
from tfdq.keras3.layer_kinds.pointwise import load_norm, norm_arguments
from tfdq.keras3.layer_kinds.registry import (
    Kind,
    Request,
    Step,
    activation_problem,
    channels_problem,
    no_parts,
    register_kind,
)
from tfdq.keras3.layer_kinds.sequence import dense_parts
from tfdq.keras3.penalty import half_gram_deviation, scale_blind, singular_value
from tfdq.keras3.ranges import SMALLEST_RANGE
from tfdq.keras3.rounding import round_through, with_gradient_of
from tfdq.keras3.windows import window_count
from tfdq.penalties.direction_rate import DIRECTION_RATE
from tflite_export.ir.graph import Operator


class KernelLayer(AffineLayer):
    """A layer with a kernel of few bits.

    Args:
        weight_bits: bits of the kernel, 2 to 8.
        use_bias: whether it has a bias.
        kernel_trainable: whether kernel and bias train.
        per_channel: one step for each output channel, else one for the kernel.
        penalty: ``{"beta", "on", "target"}`` of the orthogonality penalty, or None.
        variables: for ``kernel`` and ``bias`` the configs of the regularizer and the constraint of
            the float layer.
    """

    depthwise = False

    def __init__(
        self,
        weight_bits: int = 8,
        use_bias: bool = True,
        kernel_trainable: bool = True,
        per_channel: bool = True,
        penalty: dict[str, Any] | None = None,
        variables: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.weight_bits = int(weight_bits)
        self.use_bias = bool(use_bias)
        self.kernel_trainable = bool(kernel_trainable)
        self.per_channel = bool(per_channel)
        self.penalty = penalty
        self.variable_settings = variables or {}
        self._largest = float(2 ** (self.weight_bits - 1) - 1)

    @abstractmethod
    def kernel_shape(self, shape: Shape) -> tuple[int, ...]:
        """Return the shape of the kernel, for a source of a shape."""

    def deployed_shape(self, shape: Shape) -> tuple[int, ...]:
        """Return the shape of the kernel."""
        return self.kernel_shape(shape)

    def build(self, input_shape: Any) -> None:
        """Create kernel, bias, BatchNorm, range and deployed constants."""
        shape = integer_shape(input_shape)
        self.kernel = self._add_trained("kernel", self.kernel_shape(shape), "glorot_uniform")
        channels = self.result_shape(shape)[-1]
        assert channels is not None
        self.bias = self._add_trained("bias", (channels,), "zeros") if self.use_bias else None
        super().build(input_shape)

    def _add_trained(self, name: str, shape: tuple[int, ...], start: str) -> Any:
        settings = self.variable_settings.get(name, {})
        return self.add_weight(
            name=name,
            shape=shape,
            initializer=start,
            regularizer=keras.regularizers.get(settings.get("regularizer")),
            constraint=keras.constraints.get(settings.get("constraint")),
            trainable=self.kernel_trainable,
            dtype="float32",
            autocast=False,
        )

    def _columns(self, kernel: Any) -> Any:
        """Return a kernel as ``(n, channels)``."""
        return ops.reshape(kernel, (-1, self._channels))

    @property
    def _channels(self) -> int:
        last = self.kernel.shape[-2:] if self.depthwise else self.kernel.shape[-1:]
        return int(np.prod(last))

    def _steps(self, columns: Any) -> Any:
        magnitude = ops.max(ops.abs(columns), axis=0 if self.per_channel else None)
        return ops.stop_gradient(ops.maximum(magnitude, SMALLEST_RANGE)) / self._largest

    def train(self, flow: Any, phase: Phase) -> Flow:
        """Return the result in training, and add the penalty to the losses."""
        q, step = flow
        columns = self._columns(ops.convert_to_tensor(self.kernel))
        steps = self._steps(columns)
        integers = round_through(ops.clip(columns / steps, -self._largest, self._largest))
        acc = self.accumulate(q, ops.reshape(integers, self.kernel.shape))
        slope, offset = self.affine_in_training(
            acc, ops.stop_gradient(step) * steps, self.bias, phase
        )
        if self.penalty is not None:
            self.add_loss(self._penalty(columns, integers, steps))
        return self.round_to_grid(acc, slope, offset, phase)

    def infer(self, flow: Any) -> Flow:
        """Return what the deployed operator gives, and add the penalty to the losses."""
        if self.penalty is not None:
            columns = self._columns(ops.convert_to_tensor(self.kernel))
            steps = self._steps(columns)
            integers = ops.round(ops.clip(columns / steps, -self._largest, self._largest))
            self.add_loss(self._penalty(columns, integers, steps))
        return super().infer(flow)

    def _penalty(self, columns: Any, integers: Any, steps: Any) -> Any:
        """Return the penalty on the kernel that it is placed on."""
        assert self.penalty is not None
        on = self.penalty["on"]
        if on != "kernel" and self.norm is not None and self.norm_follows and not self.frozen:
            columns = scale_blind(columns, 1.0 if self.gamma is None else DIRECTION_RATE)
        if on == "deployed":
            columns = with_gradient_of(integers * steps, columns)
        if on != "kernel" and self.norm is not None:
            factor = ops.rsqrt(ops.convert_to_tensor(self.moving_variance) + self.norm["epsilon"])
            columns = columns * (factor if self.gamma is None else factor * self.gamma)
        kernel = self.kernel.shape
        taps = int(np.prod(kernel[:2])) if len(kernel) == 4 else 1
        if self.depthwise:
            columns = ops.transpose(ops.reshape(columns, (taps, kernel[2], kernel[3])), (1, 0, 2))
        target = singular_value(self.penalty["target"], taps)
        return self.penalty["beta"] * half_gram_deviation(columns, target)

    def quantized_kernel(self) -> Kernel:
        """Return the kernel's integers and steps, with bias and BatchNorm, in NumPy."""
        kernel = np.asarray(ops.convert_to_numpy(self.kernel), np.float32)
        columns = kernel.reshape(-1, self._channels)
        magnitude = np.abs(columns).max(axis=0 if self.per_channel else None)
        steps = (
            np.maximum(magnitude, np.float32(SMALLEST_RANGE)) / np.float32(self._largest)
        ).astype(np.float32)
        integers = np.clip(np.rint(columns / steps), -self._largest, self._largest)
        multiplier, offset = self.folded(self.bias)
        return Kernel(
            integers.astype(np.int8).reshape(kernel.shape),
            steps,
            multiplier,
            offset,
            self.weight_bits,
        )

    @property
    def weight_bits_on_record(self) -> int:
        """Bits of the kernel."""
        return self.weight_bits

    @property
    def penalty_on_record(self) -> float | None:
        """Weight of the penalty; None without one."""
        return None if self.penalty is None else float(self.penalty["beta"])

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {
            **super().get_config(),
            "weight_bits": self.weight_bits,
            "use_bias": self.use_bias,
            "kernel_trainable": self.kernel_trainable,
            "per_channel": self.per_channel,
            "penalty": self.penalty,
            "variables": self.variable_settings,
        }


class _Convolution(KernelLayer):
    """A layer with a window.

    Args:
        kernel_size: height and width of the window.
        strides: of the height and of the width.
        padding: ``"valid"`` or ``"same"``.
        dilation_rate: of the height and of the width.
    """

    def __init__(
        self,
        kernel_size: Any,
        strides: Any = (1, 1),
        padding: str = "valid",
        dilation_rate: Any = (1, 1),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.kernel_size = (int(kernel_size[0]), int(kernel_size[1]))
        self.strides = (int(strides[0]), int(strides[1]))
        self.padding = padding
        self.dilation_rate = (int(dilation_rate[0]), int(dilation_rate[1]))

    def convolved_shape(self, shape: Shape, channels: int) -> Shape:
        """Return the shape of a convolved image."""
        rows, columns = (
            window_count(size, window, stride, dilation, self.padding)
            for size, window, stride, dilation in zip(
                shape[1:3], self.kernel_size, self.strides, self.dilation_rate, strict=True
            )
        )
        return (shape[0], rows, columns, channels)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {
            **super().get_config(),
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "padding": self.padding,
            "dilation_rate": self.dilation_rate,
        }


@register
class QuantizedConv2D(_Convolution):
    """A 2-D convolution, then BatchNorm and ReLU or ReLU6 if it took them in.

    Args:
        filters: number of output channels.
    """

    def __init__(self, filters: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.filters = int(filters)

    def kernel_shape(self, shape: Shape) -> tuple[int, ...]:
        """Return ``(height, width, in, out)``."""
        assert shape[-1] is not None
        return (*self.kernel_size, shape[-1], self.filters)

    def result_shape(self, shapes: Any) -> Shape:
        """Return the shape of the convolved image."""
        return self.convolved_shape(shapes, self.filters)

    def accumulate(self, q: Any, kernel: Any) -> Any:
        """Return the image convolved with a kernel."""
        return ops.conv(
            q,
            kernel,
            strides=self.strides,
            padding=self.padding,
            data_format="channels_last",
            dilation_rate=self.dilation_rate,
        )

    def parts(self, q: Any, kernel: Any) -> list[tuple[Any, Any]]:
        """Return the integers and weights of each group of input channels."""
        ends = channel_groups(kernel.shape[2], self.splits)
        return [(q[..., a:b], kernel[:, :, a:b]) for a, b in ends]

    def numpy_parts(self, weights: np.ndarray) -> list[np.ndarray]:
        """Return the weights of each group of input channels."""
        return [weights[:, :, a:b] for a, b in channel_groups(weights.shape[2], self.splits)]

    def stored_weights(self, operator: Operator, weights: np.ndarray) -> np.ndarray:
        """Return ``(out, height, width, in)`` as ``(height, width, in, out)``."""
        return np.transpose(weights, (1, 2, 3, 0))

    def computation(self) -> Computation:
        """Return what the layer computes."""
        return Conv2D(self.quantized_kernel(), self.padding, self.strides, self.dilation_rate)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {**super().get_config(), "filters": self.filters}


@register
class QuantizedDepthwiseConv2D(_Convolution):
    """A depthwise convolution, then BatchNorm and ReLU or ReLU6 if it took them in.

    Args:
        depth_multiplier: number of output channels for each input channel.
    """

    depthwise = True

    def __init__(self, depth_multiplier: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.depth_multiplier = int(depth_multiplier)

    def kernel_shape(self, shape: Shape) -> tuple[int, ...]:
        """Return ``(height, width, in, multiplier)``."""
        assert shape[-1] is not None
        return (*self.kernel_size, shape[-1], self.depth_multiplier)

    def result_shape(self, shapes: Any) -> Shape:
        """Return the shape of the convolved image."""
        return self.convolved_shape(shapes, shapes[-1] * self.depth_multiplier)

    def accumulate(self, q: Any, kernel: Any) -> Any:
        """Return each channel of the image convolved by itself."""
        return ops.depthwise_conv(
            q,
            kernel,
            strides=self.strides,
            padding=self.padding,
            data_format="channels_last",
            dilation_rate=self.dilation_rate,
        )

    def stored_weights(self, operator: Operator, weights: np.ndarray) -> np.ndarray:
        """Return ``(1, height, width, out)`` as ``(height, width, in, multiplier)``."""
        return weights.reshape(self.kernel.shape)

    def numpy_parts(self, weights: np.ndarray) -> list[np.ndarray]:
        """Return the weights, one column for each output channel."""
        return [weights.reshape(-1, self._channels)]

    def computation(self) -> Computation:
        """Return what the layer computes."""
        return DepthwiseConv2D(
            self.quantized_kernel(), self.padding, self.strides, self.dilation_rate
        )

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {**super().get_config(), "depth_multiplier": self.depth_multiplier}


@register
class QuantizedDense(KernelLayer):
    """A dense layer on ``(batch, features)``, then BatchNorm and ReLU or ReLU6 if it took them in.

    Args:
        units: number of outputs.
    """

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = int(units)

    def kernel_shape(self, shape: Shape) -> tuple[int, ...]:
        """Return ``(in, out)``."""
        assert shape[-1] is not None
        return (shape[-1], self.units)

    def result_shape(self, shapes: Any) -> Shape:
        """Return ``(batch, units)``."""
        return (shapes[0], self.units)

    def accumulate(self, q: Any, kernel: Any) -> Any:
        """Return the matrix product."""
        return ops.matmul(q, kernel)

    def parts(self, q: Any, kernel: Any) -> list[tuple[Any, Any]]:
        """Return the integers and weights of each group of inputs."""
        return [(q[:, a:b], kernel[a:b]) for a, b in channel_groups(kernel.shape[0], self.splits)]

    def numpy_parts(self, weights: np.ndarray) -> list[np.ndarray]:
        """Return the weights of each group of inputs."""
        return [weights[a:b] for a, b in channel_groups(weights.shape[0], self.splits)]

    def stored_weights(self, operator: Operator, weights: np.ndarray) -> np.ndarray:
        """Return ``(out, in)``, or that of a 1 x 1 convolution, as ``(in, out)``."""
        return weights.reshape(self.units, -1).T

    def computation(self) -> Computation:
        """Return what the layer computes."""
        return Dense(self.quantized_kernel())

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {**super().get_config(), "units": self.units}


def channel_groups(count: int, splits: int) -> list[tuple[int, int]]:
    """Return the first and the last plus one of each of a number of equal groups."""
    ends = np.linspace(0, count, min(splits, count) + 1).astype(int)
    return [(int(a), int(b)) for a, b in pairwise(ends)]


def convolution_problem(node: Node) -> str | None:
    """Return what keeps a layer with a kernel from being quantized, or None."""
    layer = node.layer
    problem = channels_problem(layer) or activation_problem(layer)
    if problem:
        return problem
    if getattr(layer, "activity_regularizer", None) is not None:
        return "an activity_regularizer, which acts on a result that is folded away"
    if isinstance(layer, keras.layers.Dense):
        rank = len(node.shape)
        return f"a Dense on a tensor of rank {rank}; Reshape it first" if rank > 4 else None
    if layer.padding not in ("same", "valid"):
        return f"padding {layer.padding!r}; use same or valid"
    if getattr(layer, "groups", 1) != 1:
        return f"groups={layer.groups}; only groups=1 is quantized"
    depthwise = (keras.layers.DepthwiseConv2D, keras.layers.SeparableConv2D)
    if isinstance(layer, depthwise) and layer.strides[0] != layer.strides[1]:
        return f"strides {layer.strides}; those of a depthwise convolution must be equal"
    return None


def kernel_arguments(request: Request) -> dict[str, Any]:
    """Return the arguments of a quantized layer with a kernel."""
    layer, step = request.layer, request.step
    config = layer.get_config()
    role = "depthwise" if isinstance(layer, keras.layers.DepthwiseConv2D) else "kernel"
    arguments: dict[str, Any] = {
        "output": request.output,
        "activation": request.activation,
        "weight_bits": request.bits[0],
        "use_bias": layer.use_bias,
        "penalty": request.settings.penalty(),
        "variables": {
            name: {what: config.get(f"{own}_{what}") for what in ("regularizer", "constraint")}
            for name, own in (("kernel", role), ("bias", "bias"))
        },
        **request.common,
    }
    trains = [bool(layer.trainable)]
    if step.norm is not None:
        arguments.update(norm_arguments(request, step.norm, step.norm_inference))
        trains.append(bool(step.norm.trainable))
    if any(trains):
        arguments["kernel_trainable"] = trains[0]
        arguments["norm_trainable"] = trains[-1]
    else:
        arguments["trainable"] = False
    return arguments


def _window(layer: Any) -> dict[str, Any]:
    names = ("kernel_size", "strides", "padding", "dilation_rate")
    return {name: getattr(layer, name) for name in names}


def _conv_2d(request: Request) -> QuantizedConv2D:
    layer = request.layer
    return QuantizedConv2D(filters=layer.filters, **_window(layer), **kernel_arguments(request))


def _depthwise_conv_2d(request: Request) -> QuantizedDepthwiseConv2D:
    layer = request.layer
    return QuantizedDepthwiseConv2D(
        depth_multiplier=layer.depth_multiplier, **_window(layer), **kernel_arguments(request)
    )


def _dense(request: Request) -> QuantizedDense:
    per_channel = request.step.norm is not None
    return QuantizedDense(
        units=request.layer.units, per_channel=per_channel, **kernel_arguments(request)
    )


def _load(step: Step, layer: Any) -> None:
    layer.kernel.assign(ops.convert_to_numpy(step.node.layer.kernel))
    if layer.bias is not None:
        layer.bias.assign(ops.convert_to_numpy(step.node.layer.bias))
    if step.norm is not None:
        load_norm(step.norm, layer)


for _handled, _quantize in (
    (keras.layers.Conv2D, _conv_2d),
    (keras.layers.DepthwiseConv2D, _depthwise_conv_2d),
    (keras.layers.Dense, _dense),
):
    register_kind(
        Kind(
            (_handled,),
            _quantize,
            convolution_problem,
            role="kernel",
            takes_in=("norm", "activation"),
            load=_load,
            parts=dense_parts if _handled is keras.layers.Dense else no_parts,
        )
    )
