"""tf_keras models converted to Keras 3: what stays, what is refused, and what comes back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tf_keras

import tfdq
from tests.quantization.kept import randomize
from tfdq.keras3.graph import read_graph

L = tf_keras.layers
IMAGES = np.random.default_rng(0).normal(size=(3, 8, 8, 2)).astype(np.float32)


def outer() -> tf_keras.Model:
    """Nested, shared, frozen and held layers, two inputs and a dictionary of outputs."""
    inside = L.Input((8, 8, 2))
    x = L.SeparableConv2D(4, 3, depthwise_regularizer="l2", name="separable")(inside)
    inner = tf_keras.Model(inside, L.LeakyReLU(0.2, name="leaky")(x), name="inner")
    a, b = L.Input((8, 8, 2), name="a"), L.Input((8, 8, 2), name="b")
    x = L.Add(name="sum")([inner(a), inner(b)])
    x = L.BatchNormalization(momentum=0.9, name="held")(x, training=False)
    x = L.Conv2D(3, 1, trainable=False, kernel_constraint="non_neg", name="frozen")(x)
    x = L.Flatten(name="flat")(L.ReLU(6.0, name="relu6")(x))
    outputs = {
        "shares": L.Dense(4, activation="softmax", name="shares")(x),
        "age": L.Dense(1, activation="silu", name="age")(x),
    }
    return tf_keras.Model([a, b], outputs, name="outer")


def test_it_computes_the_same_and_keeps_what_the_model_says() -> None:
    model = outer()
    randomize(model)
    converted = tfdq.to_keras3(model)
    assert isinstance(converted, keras.Model)
    found = converted([IMAGES, 2.0 * IMAGES], training=False)
    wanted = model([IMAGES, 2.0 * IMAGES])
    assert set(found) == {"shares", "age"}
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5)
    assert [tensor.name for tensor in converted.inputs] == ["a", "b"]
    assert not converted.get_layer("frozen").trainable
    assert isinstance(converted.get_layer("frozen").kernel_constraint, keras.constraints.NonNeg)
    assert isinstance(converted.get_layer("separable").depthwise_regularizer, keras.regularizers.L2)
    assert converted.get_layer("held").momentum == 0.9
    held = [node.layer.name for node in read_graph(converted).nodes if node.inference]
    assert held == ["held"]


def test_there_and_back_again() -> None:
    model = tf_keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, weights=None, classes=5)
    randomize(model)
    back = tfdq.from_keras3(tfdq.to_keras3(model))
    x = np.random.default_rng(0).random((2, 32, 32, 3)).astype(np.float32)
    np.testing.assert_allclose(back(x), model(x), rtol=1e-4, atol=1e-6)
    assert [layer.name for layer in back.layers] == [layer.name for layer in model.layers]


def of_a_function() -> tf_keras.Model:
    image = L.Input((4,))
    return tf_keras.Model(image, L.Dense(2, activation=lambda x: x * 2.0, name="it")(image))


def of_an_operation() -> tf_keras.Model:
    image = L.Input((4,))
    return tf_keras.Model(image, image * 2.0)


def of_a_hard_sigmoid() -> tf_keras.Model:
    image = L.Input((4,))
    return tf_keras.Model(image, L.Activation("hard_sigmoid", name="it")(image))


def quantized() -> tf_keras.Model:
    image = L.Input((4,))
    return tfdq.quantize_model(tf_keras.Model(image, L.Dense(2, name="it")(image)))


def of_an_own_regularizer() -> tf_keras.Model:
    image = L.Input((4,))
    penalty = tfdq.OrthogonalityRegularizer(1e-3)
    return tf_keras.Model(image, L.Dense(2, kernel_regularizer=penalty, name="it")(image))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (of_a_function, r"it \(Dense\): the activation .*lambda.* has no counterpart"),
        (of_an_operation, r"\(TFOpLambda\): "),
        (of_a_hard_sigmoid, r"it \(Activation\): the activation hard_sigmoid has no counterpart"),
        (of_an_own_regularizer, r"the regularizer OrthogonalityRegularizer has no counterpart"),
        (quantized, r"quant_it \(QuantizeWrapper\): no Keras 3 layer"),
    ],
)
def test_what_cannot_cross_is_named(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tfdq.to_keras3(make())


def test_other_things_are_named() -> None:
    image = keras.Input((4,))
    with pytest.raises(TypeError, match="expected a tf_keras model, got keras"):
        tfdq.to_keras3(keras.Model(image, keras.layers.Dense(2)(image)))
    with pytest.raises(ValueError, match="not a built Functional or Sequential"):
        tfdq.to_keras3(tf_keras.Sequential([L.Dense(2)]))
