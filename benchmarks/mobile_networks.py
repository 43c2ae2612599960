"""Small networks of the kinds that run on phones: DS-CNN, EfficientNet-Lite, MobileNetV2."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tf_keras

L = tf_keras.layers


class Block(NamedTuple):
    """An inverted residual block.

    Attributes:
        filters: output channels.
        stride: of the depthwise convolution.
        expansion: channels between, as a multiple of the input's.
        size: side of the depthwise kernel.
    """

    filters: int
    stride: int
    expansion: int
    size: int


def _norm(x: Any, momentum: float, limit: float | None = None, relu: bool = True) -> Any:
    x = L.BatchNormalization(momentum=momentum)(x)
    return L.ReLU(limit)(x) if relu else x


def ds_cnn(shape: tuple[int, int, int], classes: int, momentum: float) -> tf_keras.Model:
    """Return a stem and four pairs of a depthwise and a 1x1 convolution, with ReLU."""
    image = L.Input(shape)
    x = _norm(L.Conv2D(32, 3, padding="same", use_bias=False)(image), momentum)
    for filters, stride in ((32, 1), (64, 2), (64, 1), (64, 1)):
        x = L.DepthwiseConv2D(3, strides=stride, padding="same", use_bias=False)(x)
        x = L.Conv2D(filters, 1, use_bias=False)(_norm(x, momentum))
        x = _norm(x, momentum)
    return tf_keras.Model(image, L.Dense(classes)(L.GlobalAveragePooling2D()(x)))


def _inverted(
    shape: tuple[int, int, int], classes: int, momentum: float, blocks: Sequence[Block], head: int
) -> tf_keras.Model:
    image = L.Input(shape)
    x = _norm(L.Conv2D(16, 3, padding="same", use_bias=False)(image), momentum, 6.0)
    for block in blocks:
        y, channels = x, x.shape[-1]
        if block.expansion > 1:
            y = L.Conv2D(channels * block.expansion, 1, use_bias=False)(y)
            y = _norm(y, momentum, 6.0)
        y = L.DepthwiseConv2D(block.size, strides=block.stride, padding="same", use_bias=False)(y)
        y = L.Conv2D(block.filters, 1, use_bias=False)(_norm(y, momentum, 6.0))
        y = _norm(y, momentum, relu=False)
        x = L.Add()([x, y]) if (block.stride, block.filters) == (1, channels) else y
    x = _norm(L.Conv2D(head, 1, use_bias=False)(x), momentum, 6.0)
    return tf_keras.Model(image, L.Dense(classes)(L.GlobalAveragePooling2D()(x)))


def efficientnet_lite(shape: tuple[int, int, int], classes: int, momentum: float) -> tf_keras.Model:
    """Return inverted residuals with kernels of 3x3 and 5x5, expansion 4, ReLU6."""
    blocks = [
        Block(16, 1, 1, 3),
        Block(24, 2, 4, 3),
        Block(24, 1, 4, 3),
        Block(32, 1, 4, 5),
        Block(32, 1, 4, 5),
    ]
    return _inverted(shape, classes, momentum, blocks, 96)


def mobilenet_v2(shape: tuple[int, int, int], classes: int, momentum: float) -> tf_keras.Model:
    """Return inverted residuals with kernels of 3x3, expansion 6, ReLU6."""
    blocks = [
        Block(16, 1, 1, 3),
        Block(24, 2, 6, 3),
        Block(24, 1, 6, 3),
        Block(32, 1, 6, 3),
        Block(32, 1, 6, 3),
    ]
    return _inverted(shape, classes, momentum, blocks, 128)


NETWORKS: dict[str, Callable[[tuple[int, int, int], int, float], tf_keras.Model]] = {
    "DS-CNN": ds_cnn,
    "EfficientNet-Lite": efficientnet_lite,
    "MobileNetV2": mobilenet_v2,
}
