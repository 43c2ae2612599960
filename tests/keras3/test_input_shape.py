"""`quantize_model(input_shape=)`: models whose input has axes of unknown size."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tf_keras

import tfdq
from tests.keras3.deployed import assert_deployed
from tfdq.keras3 import QuantizedModel, calibrate, quantize_model
from tflite_export import convert

L = keras.layers


def segmenter(height: int | None, width: int | None) -> keras.Model:
    """Sizes that come from the input: a nested model, a Reshape with -1, means, operations."""
    keras.utils.set_random_seed(0)
    inner = keras.Input((height, width, 1))
    base = keras.Model(inner, L.Conv2D(4, 3, 2, padding="same")(inner), name="base")
    image = keras.Input((height, width, 1), name="image")
    x = L.UpSampling2D()(base(image))
    x = L.Conv2D(4, 3, padding="same")(x) + keras.ops.mean(x, (1, 2), keepdims=True) * x[..., :4]
    return keras.Model(image, L.Dense(3)(L.Reshape((-1, 4))(x)))


def test_unknown_sizes_become_those_of_the_input_shape() -> None:
    float_model = segmenter(None, None)
    model = quantize_model(float_model, 0.0, input_shape=(8, 10, 1))
    assert model.input_shape == (None, 8, 10, 1)
    assert model.output_shape == (None, 80, 3)
    assert float_model.output_shape == (None, None, 3)
    wanted = quantize_model(segmenter(8, 10), 0.0)
    wanted.set_weights(model.get_weights())
    x = np.random.default_rng(0).random((4, 8, 10, 1)).astype(np.float32)
    found = [calibrate(m, x).predict(x, verbose=0) for m in (model, wanted)]
    np.testing.assert_array_equal(*found)
    assert_deployed(model, x, compiled=False)


@pytest.mark.parametrize("shape", [(8, 10), (8, 10, 3), (8, None, 1), (0, 10, 1)])
def test_an_input_shape_that_a_model_does_not_take_is_named(shape: Any) -> None:
    with pytest.raises(ValueError, match=r"is no shape of an input \(None, None, 1\)"):
        quantize_model(segmenter(None, None), input_shape=shape)


def test_what_has_no_use_for_an_input_shape_says_so() -> None:
    images = [keras.Input((None, None, 1)) for _ in range(2)]
    model = keras.Model(images, L.Add()(images))
    with pytest.raises(ValueError, match="for models of one input, this one has 2"):
        quantize_model(model, input_shape=(8, 10, 1))
    other = tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.Dense(2)])
    with pytest.raises(ValueError, match=r"input_shape=\(4,\) is for Keras 3 models"):
        tfdq.quantize_model(other, input_shape=(4,))


def of_any_size(height: int, width: int) -> QuantizedModel:
    """Return a segmenter with ranges, quantized at a size."""
    model = quantize_model(segmenter(height, width), 0.0)
    images = np.random.default_rng(0).random((4, height, width, 1)).astype(np.float32)
    return calibrate(model, images)


def test_a_file_of_another_size_is_that_of_a_model_of_that_size() -> None:
    model = of_any_size(8, 10)
    before = model.get_weights()
    x = np.random.default_rng(1).random((4, 12, 6, 1)).astype(np.float32)
    exported = convert(model, calibration=x, input_shape=(12, 6, 1))
    assert exported.parity.exact
    assert exported.graph.tensors[exported.graph.outputs[0]].shape[1:] == (72, 3)
    wanted = of_any_size(12, 6)
    for old, new in zip(model.variables, wanted.variables, strict=True):
        if not old.name.startswith("deployed_"):
            new.assign(old)
    np.testing.assert_array_equal(exported.interpreter().predict(x), wanted.predict(x, verbose=0))
    # The model stays at its size.
    assert model.input_shape == (None, 8, 10, 1)
    for old, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, now)


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda x: L.Dense(2, name="it")(L.Flatten()(x)), "it"),
        (lambda x: L.Reshape((4, 16), name="it")(x), "it"),
        (lambda x: L.UpSampling2D(2, interpolation="bilinear", name="it")(x), "it"),
        (lambda x: x[:, :-1], "get_item"),
    ],
    ids=["dense", "reshape", "bilinear", "slice"],
)
def test_layers_of_one_size_are_named(build: Any, name: str) -> None:
    image = keras.Input((8, 8, 1))
    model = quantize_model(keras.Model(image, build(image)), 0.0)
    calibrate(model, np.ones((2, 8, 8, 1), np.float32))
    with pytest.raises(ValueError, match=rf"not made for: '{name}(_\d+)?' \("):
        convert(model, input_shape=(12, 8, 1))


def test_the_channels_of_a_file_are_those_of_the_model() -> None:
    with pytest.raises(ValueError, match=r"\(12, 6, 3\) is no shape of an input \(None, None, 1"):
        convert(of_any_size(8, 10), input_shape=(12, 6, 3))


def test_a_file_of_a_tf_keras_model_has_the_size_of_its_input() -> None:
    model = tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.Dense(2)])
    with pytest.raises(ValueError, match=r"input_shape=\(6,\) is for Keras 3 models"):
        convert(tfdq.quantize_model(model), input_shape=(6,))
