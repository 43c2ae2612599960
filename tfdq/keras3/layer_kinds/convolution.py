"""Convolutions and depthwise convolutions of images."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from tfdq.description import Computation, Conv2D, DepthwiseConv2D, Shape
from tfdq.keras3.layer_kinds.base import register
from tfdq.keras3.layer_kinds.kernel import (
    KernelLayer,
    channel_groups,
    convolution_problem,
    kernel_arguments,
    load_kernel,
)
from tfdq.keras3.layer_kinds.registry import Kind, Request, register_kind
from tfdq.keras3.windows import window_count
from tflite_export.ir.graph import Operator


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
        groups: number of groups of channels that are convolved by themselves.
    """

    def __init__(self, filters: int, groups: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.filters = int(filters)
        self.groups = int(groups)

    def kernel_shape(self, shape: Shape) -> tuple[int, ...]:
        """Return ``(height, width, in / groups, out)``."""
        assert shape[-1] is not None
        return (*self.kernel_size, shape[-1] // self.groups, self.filters)

    def result_shape(self, shapes: Any) -> Shape:
        """Return the shape of the convolved image."""
        return self.convolved_shape(shapes, self.filters)

    def accumulate(self, q: Any, kernel: Any) -> Any:
        """Return the image convolved with a kernel."""
        # No backend has grouped convolutions with gradients on every device.
        pairs = zip(
            ops.split(q, self.groups, axis=-1), ops.split(kernel, self.groups, axis=-1), strict=True
        )
        sums = [
            ops.conv(
                part,
                own,
                strides=self.strides,
                padding=self.padding,
                data_format="channels_last",
                dilation_rate=self.dilation_rate,
            )
            for part, own in pairs
        ]
        return sums[0] if self.groups == 1 else ops.concatenate(sums, axis=-1)

    def parts(self, q: Any, kernel: Any) -> list[tuple[Any, Any]]:
        """Return the integers and weights of parts of the input channels, of each group alike."""
        ends = channel_groups(kernel.shape[2], self.splits)
        if len(ends) == 1:
            return [(q, kernel)]
        grouped = ops.reshape(q, (-1, *q.shape[1:3], self.groups, kernel.shape[2]))
        return [
            (
                ops.reshape(grouped[..., a:b], (-1, *q.shape[1:3], self.groups * (b - a))),
                kernel[:, :, a:b],
            )
            for a, b in ends
        ]

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
        return {**super().get_config(), "filters": self.filters, "groups": self.groups}


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


def _window(layer: Any) -> dict[str, Any]:
    names = ("kernel_size", "strides", "padding", "dilation_rate")
    return {name: getattr(layer, name) for name in names}


def _conv_2d(request: Request) -> QuantizedConv2D:
    layer = request.layer
    return QuantizedConv2D(
        filters=layer.filters, groups=layer.groups, **_window(layer), **kernel_arguments(request)
    )


def _depthwise_conv_2d(request: Request) -> QuantizedDepthwiseConv2D:
    layer = request.layer
    return QuantizedDepthwiseConv2D(
        depth_multiplier=layer.depth_multiplier, **_window(layer), **kernel_arguments(request)
    )


for _handled, _quantize in (
    (keras.layers.Conv2D, _conv_2d),
    (keras.layers.DepthwiseConv2D, _depthwise_conv_2d),
):
    register_kind(
        Kind(
            (_handled,),
            _quantize,
            convolution_problem,
            role="kernel",
            takes_in=("norm", "activation"),
            load=load_kernel,
            group="kernel",
        )
    )
