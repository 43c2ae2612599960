"""Small Keras 3 networks with the blocks of MobileNetV3 and of EfficientNet: gates of channels."""

from __future__ import annotations

from typing import Any

import keras

L = keras.layers


def _hard_sigmoid(x: Any) -> Any:
    return L.ReLU(6.0)(x + 3.0) * (1.0 / 6.0)


def _hard_swish(x: Any) -> Any:
    return L.Multiply()([x, _hard_sigmoid(x)])


def _norm(x: Any) -> Any:
    return L.BatchNormalization(momentum=0.9)(x)


def _v3_block(x: Any, filters: int, strides: int, squeeze: bool) -> Any:
    source, wide = x, 2 * x.shape[-1]
    x = _hard_swish(_norm(L.Conv2D(wide, 1, use_bias=False)(x)))
    x = L.DepthwiseConv2D(3, strides, padding="same", use_bias=False)(x)
    x = _hard_swish(_norm(x))
    if squeeze:
        gate = L.GlobalAveragePooling2D(keepdims=True)(x)
        gate = L.Conv2D(wide, 1)(L.Conv2D(wide // 2, 1, activation="relu")(gate))
        x = L.Multiply()([x, _hard_sigmoid(gate)])
    x = _norm(L.Conv2D(filters, 1, use_bias=False)(x))
    return L.Add()([x, source]) if (strides, filters) == (1, source.shape[-1]) else x


def mobilenet_v3_like(
    shape: tuple[int, int, int] = (32, 32, 3), classes: int = 10, width: int = 4
) -> keras.Model:
    """Return three blocks of MobileNetV3Small (arXiv 1905.02244), as keras.applications has them.

    Args:
        shape: of an image, whose values are 0 to 255.
        classes: number of logits.
        width: channels of the stem.
    """
    image = keras.Input(shape, name="image")
    x = L.Rescaling(1.0 / 127.5, offset=-1.0)(image)
    x = L.Conv2D(width, 3, strides=2, padding="same", use_bias=False)(x)
    x = _hard_swish(_norm(x))
    for filters, strides, squeeze in (
        (width, 1, True),
        (2 * width, 2, False),
        (2 * width, 1, True),
    ):
        x = _v3_block(x, filters, strides, squeeze)
    x = _hard_swish(L.Conv2D(4 * width, 1)(L.GlobalAveragePooling2D(keepdims=True)(x)))
    return keras.Model(image, L.Flatten()(L.Conv2D(classes, 1)(L.Dropout(0.2)(x))))


def _efficient_block(x: Any, filters: int, strides: int) -> Any:
    source, wide = x, 2 * x.shape[-1]
    x = L.Activation("swish")(_norm(L.Conv2D(wide, 1, use_bias=False)(x)))
    padding = "same"
    if strides == 2:
        x, padding = L.ZeroPadding2D(((0, 1), (0, 1)))(x), "valid"
    x = L.DepthwiseConv2D(3, strides, padding=padding, use_bias=False)(x)
    x = L.Activation("swish")(_norm(x))
    gate = L.Reshape((1, 1, wide))(L.GlobalAveragePooling2D()(x))
    gate = L.Conv2D(max(2, wide // 8), 1, padding="same", activation="swish")(gate)
    x = L.Multiply()([x, L.Conv2D(wide, 1, padding="same", activation="sigmoid")(gate)])
    x = _norm(L.Conv2D(filters, 1, use_bias=False)(x))
    if (strides, filters) == (1, source.shape[-1]):
        return L.Add()([L.Dropout(0.2, noise_shape=(None, 1, 1, 1))(x), source])
    return x


def efficientnet_like(
    shape: tuple[int, int, int] = (32, 32, 3), classes: int = 10, width: int = 4
) -> keras.Model:
    """Return three blocks of EfficientNetB0 (arXiv 1905.11946), as keras.applications has them.

    Args:
        shape: of an image, whose values are 0 to 255.
        classes: number of probabilities.
        width: channels of the stem.
    """
    image = keras.Input(shape, name="image")
    x = L.Rescaling(1.0 / 255.0)(image)
    x = L.Normalization(mean=[0.4] * shape[-1], variance=[0.06] * shape[-1])(x)
    x = L.Conv2D(width, 3, strides=2, padding="same", use_bias=False)(x)
    x = L.Activation("swish")(_norm(x))
    for filters, strides in ((width, 1), (2 * width, 2), (2 * width, 1)):
        x = _efficient_block(x, filters, strides)
    x = L.Activation("swish")(_norm(L.Conv2D(4 * width, 1, use_bias=False)(x)))
    return keras.Model(image, L.Dense(classes, activation="softmax")(L.GlobalAveragePooling2D()(x)))
