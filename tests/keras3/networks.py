"""Keras 3 networks for the tests."""

from __future__ import annotations

from typing import Any

import keras

L = keras.layers


def conv_bn(x: Any, filters: int, size: int, strides: int = 1) -> Any:
    x = L.Conv2D(filters, size, strides, padding="same", use_bias=False)(x)
    return L.BatchNormalization(momentum=0.9)(x)


def small_cnn(classes: int = 10, side: int = 8) -> keras.Model:
    image = keras.Input((side, side, 1), name="image")
    x = L.ReLU()(conv_bn(image, 8, 3))
    x = L.MaxPooling2D()(x)
    x = L.ReLU()(conv_bn(x, 16, 3))
    x = L.GlobalAveragePooling2D()(x)
    return keras.Model(image, L.Dense(classes, name="logits")(x), name="small_cnn")


def mobilenet_v2(alpha: float = 0.35) -> keras.Model:
    return keras.applications.MobileNetV2(
        (32, 32, 3), alpha=alpha, weights=None, classes=10, classifier_activation=None
    )
