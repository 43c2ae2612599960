"""`quantize_model(input_shape=)`: models whose input has axes of unknown size."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tf_keras

import tfdq
from tests.keras3.deployed import assert_deployed
from tfdq.keras3 import calibrate, quantize_model

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
