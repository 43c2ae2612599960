"""Layers that compute on integers what they compute on reals: they only move or drop values."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import keras
import numpy as np
from keras import ops

from tfdq.description import (
    Computation,
    GlobalMaxPool2D,
    Identity,
    MaxPool2D,
    Reshape,
    Shape,
    ZeroPad2D,
)
from tfdq.keras3.graph import Node
from tfdq.keras3.layer_kinds.base import Flow, Phase, QuantizedLayer, register
from tfdq.keras3.layer_kinds.registry import Kind, Request, channels_problem, register_kind
from tfdq.keras3.windows import window_count


class MovingLayer(QuantizedLayer):
    """A layer whose result is on the grid of its source."""

    rising = True

    @abstractmethod
    def move(self, q: Any) -> Any:
        """Return the result's integers."""

    def train(self, flow: Any, phase: Phase) -> Flow:
        """Return the result in training."""
        return self.infer(flow)

    def infer(self, flow: Any) -> Flow:
        """Return the result."""
        q, step = flow
        return self.move(q), step


@register
class QuantizedReshape(MovingLayer):
    """The same integers in another shape: Reshape and Flatten.

    Args:
        target_shape: shape of the result without the batch; -1, at most once: what remains.
    """

    def __init__(self, target_shape: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.target_shape = tuple(int(size) for size in target_shape)

    def move(self, q: Any) -> Any:
        """Return the integers in the new shape."""
        return ops.reshape(q, (-1, *self.result_shape(tuple(q.shape))[1:]))

    def result_shape(self, shapes: Any) -> Shape:
        """Return the new shape."""
        known = math.prod(size for size in self.target_shape if size != -1)
        rest = flat_size(shapes) // known
        return (shapes[0], *(rest if size == -1 else size for size in self.target_shape))

    def fits(self, built_for: Shape, other: Shape) -> bool:
        """Return whether the result follows the size of the source and takes all its values.

        A target without -1 may stand for one that the size gave, as of ``keras.ops.expand_dims``.
        """
        if -1 not in self.target_shape:
            return built_for == other
        return flat_size(other) == flat_size(self.result_shape(other))

    def computation(self) -> Computation:
        """Return what the layer computes."""
        return Reshape()

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {**super().get_config(), "target_shape": self.target_shape}


@register
class QuantizedZeroPadding2D(MovingLayer):
    """Zeros around an image.

    Args:
        padding: ``((top, bottom), (left, right))``.
    """

    def __init__(self, padding: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        (top, bottom), (left, right) = padding
        self.padding = ((int(top), int(bottom)), (int(left), int(right)))

    def move(self, q: Any) -> Any:
        """Return the padded image."""
        return ops.pad(q, ((0, 0), *self.padding, (0, 0)))

    def result_shape(self, shapes: Any) -> Shape:
        """Return the shape of the padded image."""
        batch, height, width, channels = shapes
        return (batch, height + sum(self.padding[0]), width + sum(self.padding[1]), channels)

    def computation(self) -> Computation:
        """Return what the layer computes."""
        return ZeroPad2D(self.padding)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {**super().get_config(), "padding": self.padding}


@register
class QuantizedIdentity(MovingLayer):
    """The source itself: an output of the model that other layers take as well."""

    def move(self, q: Any) -> Any:
        """Return the integers as they are."""
        return q

    def result_shape(self, shapes: Any) -> Shape:
        """Return the shape of the source."""
        return tuple(shapes)

    def computation(self) -> Computation:
        """Return what the layer computes."""
        return Identity()


@register
class QuantizedMaxPooling2D(MovingLayer):
    """The largest integer of each window.

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

    def move(self, q: Any) -> Any:
        """Return the maxima."""
        return ops.max_pool(
            q, self.pool_size, self.strides, self.padding, data_format="channels_last"
        )

    def result_shape(self, shapes: Any) -> Shape:
        """Return the shape of the pooled image."""
        return pooled_shape(shapes, self.pool_size, self.strides, self.padding)

    def computation(self) -> Computation:
        """Return what the layer computes."""
        return MaxPool2D(self.pool_size, self.strides, self.padding)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        config = {"pool_size": self.pool_size, "strides": self.strides, "padding": self.padding}
        return {**super().get_config(), **config}


@register
class QuantizedGlobalMaxPooling2D(MovingLayer):
    """The largest integer of each channel.

    Args:
        keepdims: keep the axes of the image.
    """

    def __init__(self, keepdims: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.keepdims = bool(keepdims)

    def move(self, q: Any) -> Any:
        """Return the maxima."""
        return ops.max(q, axis=(1, 2), keepdims=self.keepdims)

    def result_shape(self, shapes: Any) -> Shape:
        """Return the shape of the maxima."""
        return whole_image_shape(shapes, self.keepdims)

    def computation(self) -> Computation:
        """Return what the layer computes."""
        return GlobalMaxPool2D()

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {**super().get_config(), "keepdims": self.keepdims}


def pooled_shape(shape: Any, pool_size: Any, strides: Any, padding: str) -> Shape:
    """Return the shape of a pooled image."""
    rows, columns = (
        window_count(size, window, stride, 1, padding)
        for size, window, stride in zip(shape[1:3], pool_size, strides, strict=True)
    )
    return (shape[0], rows, columns, shape[3])


def whole_image_shape(shape: Any, keepdims: bool) -> Shape:
    """Return the shape of one value for each channel."""
    return (shape[0], 1, 1, shape[3]) if keepdims else (shape[0], shape[3])


def flat_size(shape: Any) -> int:
    """Return the number of values of one sample."""
    return int(np.prod(shape[1:]))


def _problem(node: Node) -> str | None:
    return channels_problem(node.layer)


def _reshape(request: Request) -> QuantizedReshape:
    layer = request.layer
    target = (-1,) if isinstance(layer, keras.layers.Flatten) else layer.target_shape
    return QuantizedReshape(target_shape=target, **request.common)


def _zero_padding(request: Request) -> QuantizedZeroPadding2D:
    return QuantizedZeroPadding2D(padding=request.layer.padding, **request.common)


def _max_pooling(request: Request) -> QuantizedMaxPooling2D:
    layer = request.layer
    return QuantizedMaxPooling2D(
        pool_size=layer.pool_size, strides=layer.strides, padding=layer.padding, **request.common
    )


def _global_max_pooling(request: Request) -> QuantizedGlobalMaxPooling2D:
    return QuantizedGlobalMaxPooling2D(keepdims=request.layer.keepdims, **request.common)


register_kind(Kind((keras.layers.Flatten, keras.layers.Reshape), _reshape, _problem))
register_kind(Kind((keras.layers.ZeroPadding2D,), _zero_padding, _problem))
register_kind(Kind((keras.layers.MaxPooling2D,), _max_pooling, _problem))
register_kind(Kind((keras.layers.GlobalMaxPooling2D,), _global_max_pooling, _problem))
