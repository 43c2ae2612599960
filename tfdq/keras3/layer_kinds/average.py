"""Means: of windows, and of the whole image."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import keras
import numpy as np
from keras import ops

from tfdq.description import AveragePool2D, Call, Computation, GlobalAveragePool2D, Pair, Shape
from tfdq.grid import Grid
from tfdq.keras3.graph import Node
from tfdq.keras3.layer_kinds.base import (
    Flow,
    Phase,
    QuantizedLayer,
    Sealing,
    integer_shape,
    register,
)
from tfdq.keras3.layer_kinds.registry import Kind, Request, channels_problem, register_kind
from tfdq.keras3.layer_kinds.shape import pooled_shape, whole_image_shape
from tfdq.keras3.ranges import OutputRange, RangeSettings
from tfdq.keras3.rounding import between, round_through, with_gradient_of
from tfdq.settings.quantization import LINEAR_BITS
from tflite_export.ir.graph import IntegerGraph, Operator, Pooling
from tflite_export.ir.requantization import requantization_scale
from tflite_export.ops.mean import mean_factors
from tflite_export.ops.windows import pool_counts

LARGEST_WINDOW = 2**24 // (127 * 255) - 1
"""Pixels of the largest window whose sum float32 holds, in the kernel's units."""

_LEVELS = 255


class _Average(QuantizedLayer):
    """A layer of means, on a grid of its own.

    Args:
        output: `RangeSettings` of the means.
    """

    sealed_sources = 1
    rising = True

    def __init__(self, output: RangeSettings | dict[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.output_settings = RangeSettings.of(output)

    @abstractmethod
    def sums(self, q: Any) -> Any:
        """Return the sum of each window."""

    @abstractmethod
    def counts(self) -> Any:
        """Return the number of pixels in each window, float32, broadcast against the sums."""

    def train(self, flow: Any, phase: Phase) -> Flow:
        """Return the means in training."""
        q, step = flow
        means = self.sums(q) * (step / self.counts())
        steps = self.range.take(means, phase.ranges)
        return round_through(between(means * (1.0 / steps.step), steps.low, steps.high)), steps.step

    def grid(self) -> Grid:
        """Return the grid of the means."""
        return self.range.grid()

    def describe(self, sources: tuple[int, ...], shape: Shape) -> Call:
        """Return the layer's entry in the description of a model."""
        bits = (None, self.output_settings.bits)
        return Call(self.name, self.computation(), sources, shape, self.grid(), bits=bits)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {**super().get_config(), "output": self.output_settings.config()}


@register
class QuantizedAveragePooling2D(_Average):
    """The mean of each window, over the pixels inside the image.

    Args:
        pool_size: height and width of the window.
        strides: of the height and of the width.
        padding: ``"valid"`` or ``"same"``.
    """

    def __init__(self, pool_size: Any, strides: Any, padding: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pool_size = (int(pool_size[0]), int(pool_size[1]))
        self.strides = (int(strides[0]), int(strides[1]))
        self.padding = padding

    def build(self, input_shape: Any) -> None:
        """Create the range and the deployed constants of each place of the image."""
        shape = integer_shape(input_shape)
        self.range = OutputRange(self, self.output_settings)
        options = Pooling(self.padding.upper(), *self.strides[::-1], *self.pool_size[::-1])
        assert shape[1] is not None
        assert shape[2] is not None
        self._counts = pool_counts((shape[1], shape[2]), options)
        self._channels = shape[3]
        places = self._counts.shape
        self.factor = self.add_constant("factor", places)
        self.bias = self.add_constant("bias", places)
        self.weight = self.add_constant("weight", ())
        self.build_seal()

    def sums(self, q: Any) -> Any:
        """Return the sum of each window."""
        if self.strides[0] != self.strides[1]:
            # TensorFlow's depthwise convolutions have one stride: each channel is an image.
            _, height, width, channels = q.shape
            images = ops.reshape(ops.transpose(q, (0, 3, 1, 2)), (-1, height, width, 1))
            sums = ops.conv(
                images,
                ops.ones((*self.pool_size, 1, 1)),
                strides=self.strides,
                padding=self.padding,
                data_format="channels_last",
            )
            by_channel = ops.reshape(sums, (-1, channels, *sums.shape[1:3]))
            return ops.transpose(by_channel, (0, 2, 3, 1))
        return ops.depthwise_conv(
            q,
            ops.ones((*self.pool_size, self._channels, 1)),
            strides=self.strides,
            padding=self.padding,
            data_format="channels_last",
        )

    def counts(self) -> Any:
        """Return the number of pixels in each window."""
        return ops.convert_to_tensor(self._counts.astype(np.float32))

    def infer(self, flow: Any) -> Flow:
        """Return the means that the deployed convolutions give."""
        q, step = flow
        sums = self.sums(q) * self.weight
        bounds = ops.convert_to_tensor(self.sealed_bounds)
        values = (ops.stop_gradient(sums) + self.bias) * self.factor
        exact = between(ops.round(values), bounds[0], bounds[1])
        smooth = between(sums * self.factor, bounds[0], bounds[1])
        return with_gradient_of(exact, smooth), self.deployed_step(step)

    def result_shape(self, shapes: Any) -> Shape:
        """Return the shape of the pooled image."""
        return pooled_shape(shapes, self.pool_size, self.strides, self.padding)

    def fits(self, built_for: Shape, other: Shape) -> bool:
        """Return whether there are several windows, or one of another size than the image.

        The mean of an image that is one window is a `QuantizedGlobalAveragePooling2D`.
        """
        return not _is_one_window(other, self.result_shape(other), self.pool_size, self.padding)

    def computation(self) -> Computation:
        """Return what the layer computes."""
        return AveragePool2D(self.pool_size, self.strides, self.padding)

    def seal(self, sealing: Sealing) -> None:
        """Take bias and factor of each place from the convolution that computes its mean."""
        convolutions = _convolutions(sealing)
        factors, biases = np.zeros(self._counts.shape), np.zeros(self._counts.shape)
        for count, operator in zip(np.unique(self._counts), convolutions, strict=True):
            weight, bias, factor = _constants(sealing.graph, operator)
            biases[self._counts == count] = bias
            factors[self._counts == count] = factor
        self.weight.assign(np.float32(weight))
        self.bias.assign(biases.astype(np.float32))
        self.factor.assign(factors.astype(np.float32))
        self.set_seal(sealing)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        config = {"pool_size": self.pool_size, "strides": self.strides, "padding": self.padding}
        return {**super().get_config(), **config}


@register
class QuantizedGlobalAveragePooling2D(_Average):
    """The mean of each channel.

    The kernel of a mean adds its offset to a product, which a compiler may round once instead of
    twice. So the result of each possible sum is looked up in a table.

    Args:
        keepdims: keep the axes of the image.
        one_window: the image is the one window of an AveragePooling2D, and one of another size has
            other windows.
    """

    def __init__(self, keepdims: bool = False, one_window: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.keepdims = bool(keepdims)
        self.one_window = bool(one_window)

    def build(self, input_shape: Any) -> None:
        """Create the range and the table."""
        shape = integer_shape(input_shape)
        assert shape[1] is not None
        assert shape[2] is not None
        self._count = shape[1] * shape[2]
        self.range = OutputRange(self, self.output_settings)
        self.table = self.add_constant("table", (_LEVELS * self._count + 1,))
        self.first = self.add_constant("first", ())
        self.factor = self.add_constant("factor", ())
        self.build_seal()

    def sums(self, q: Any) -> Any:
        """Return the sum of each channel."""
        return ops.sum(q, axis=(1, 2), keepdims=self.keepdims)

    def counts(self) -> Any:
        """Return the number of pixels."""
        return float(self._count)

    def infer(self, flow: Any) -> Flow:
        """Return the means that the deployed operator gives."""
        q, step = flow
        sums = self.sums(q)
        places = ops.cast(ops.stop_gradient(sums) - self.first, "int32")
        places = ops.clip(places, 0, _LEVELS * self._count)
        exact = ops.take(ops.convert_to_tensor(self.table), places)
        bounds = ops.convert_to_tensor(self.sealed_bounds)
        smooth = between(sums * self.factor, bounds[0], bounds[1])
        return with_gradient_of(exact, smooth), self.deployed_step(step)

    def result_shape(self, shapes: Any) -> Shape:
        """Return the shape of the means."""
        return whole_image_shape(shapes, self.keepdims)

    def fits(self, built_for: Shape, other: Shape) -> bool:
        """Return whether the mean is that of the whole image at the other size too."""
        return not self.one_window or built_for[1:3] == other[1:3]

    def computation(self) -> Computation:
        """Return what the layer computes."""
        return GlobalAveragePool2D()

    def seal(self, sealing: Sealing) -> None:
        """Tabulate the operator that the layer became."""
        graph, count = sealing.graph, self._count
        source = graph.tensors[sealing.sources[0]]
        stored = np.arange(-128 * count, 127 * count + 1)
        sums = stored - count * source.zero_point
        means = [op for op in sealing.operators if op.kind == "MEAN"]
        if means:
            output = graph.tensors[means[0].outputs[0]]
            factor, offset = mean_factors(source, output)
            values = np.rint(stored.astype(np.float32) * factor + offset) - output.zero_point
        else:
            weight, bias, factor = _constants(graph, _convolutions(sealing)[0])
            values = np.rint((sums * weight + bias).astype(np.float32) * factor)
        low, high = sealing.bounds
        self.table.assign(np.clip(values, low, high).astype(np.float32))
        self.first.assign(np.float32(sums[0]))
        ratio = sealing.scale(sealing.sources[0]) / sealing.scale(sealing.result)
        self.factor.assign(np.float32(ratio / count))
        self.set_seal(sealing)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        config = {"keepdims": self.keepdims, "one_window": self.one_window}
        return {**super().get_config(), **config}


def _convolutions(sealing: Sealing) -> list[Operator]:
    """Return the depthwise convolutions that compute the means, that of the fewest pixels first."""
    return [
        op
        for op in sealing.operators
        if op.kind == "DEPTHWISE_CONV_2D" and op.inputs[0] == sealing.sources[0]
    ]


def _constants(graph: IntegerGraph, operator: Operator) -> tuple[int, int, np.float32]:
    """Return the weight, the bias and the factor that all channels of a convolution share."""
    source, weights, biases = (graph.tensors[i] for i in operator.inputs)
    output = graph.tensors[operator.outputs[0]]
    assert weights.data is not None
    assert weights.quantization is not None
    assert biases.data is not None
    scale = weights.quantization.scale[:1]
    factor = requantization_scale(source.scale, scale, output.scale)[0]
    return int(weights.data.reshape(-1)[0]), int(biases.data[0]), factor


def _problem(node: Node) -> str | None:
    layer = node.layer
    problem = channels_problem(layer)
    if problem is None and isinstance(layer, keras.layers.AveragePooling2D):
        pixels = int(np.prod(layer.pool_size))
        if pixels > LARGEST_WINDOW:
            return f"a window of {pixels} pixels; at most {LARGEST_WINDOW} are added up exactly"
    return problem


def _is_one_window(source: Shape, result: Shape, pool_size: Pair, padding: str) -> bool:
    """Return whether the mean of each window is that of the whole image."""
    whole = pool_size == tuple(source[1:3])
    return whole and (padding == "valid" or tuple(result[1:3]) == (1, 1))


def _average_pooling(request: Request) -> QuantizedLayer:
    layer = request.layer
    shapes = request.source_shapes[0], request.step.node.shape
    if _is_one_window(*shapes, tuple(layer.pool_size), layer.padding):
        return QuantizedGlobalAveragePooling2D(
            output=RangeSettings(LINEAR_BITS), keepdims=True, one_window=True, **request.common
        )
    return QuantizedAveragePooling2D(
        output=RangeSettings(LINEAR_BITS),
        pool_size=layer.pool_size,
        strides=layer.strides,
        padding=layer.padding,
        **request.common,
    )


def _global_average_pooling(request: Request) -> QuantizedGlobalAveragePooling2D:
    return QuantizedGlobalAveragePooling2D(
        output=RangeSettings(LINEAR_BITS), keepdims=request.layer.keepdims, **request.common
    )


register_kind(Kind((keras.layers.AveragePooling2D,), _average_pooling, _problem))
register_kind(Kind((keras.layers.GlobalAveragePooling2D,), _global_average_pooling, _problem))
