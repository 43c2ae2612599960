"""Each mistake has an error that names it, before any work is done."""

import re

import numpy as np
import pytest
import tensorflow_model_optimization as tfmot
import tf_keras

import tfdq
from tests.quantization.networks import every_layer

L = tf_keras.layers


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_bits": 1}, "weight_bits must be a whole number from 2 to 8, got 1"),
        ({"weight_bits": 9}, "weight_bits must be a whole number from 2 to 8, got 9"),
        ({"activation_bits": 0}, "activation_bits must be a whole number from 1 to 8, got 0"),
        ({"activation_bits": 4.0}, "whole number"),
        ({"first_last_bits": 1}, "first_last_bits"),
        ({"lipschitz_beta": -1e-3}, ">= 0, got -0.001"),
        ({"lipschitz_beta": float("nan")}, "finite"),
        ({"on": "weights"}, "'kernel', 'folded' or 'deployed'"),
        ({"layer_bits": {"stem": 1}}, "layer_bits.stem"),
        ({"layer_bits": {"nowhere": 4}}, "no layer is called .*nowhere"),
        ({"layer_bits": [4]}, "layer_bits: Input should be a valid dictionary"),
        ({"skip": ["nowhere"]}, "no layer is called .*nowhere"),
        ({"activation_range": "max"}, "'relu6', 'moving_average' or 'learned'"),
        ({"input_range": (1.0, 2.0)}, "contain 0"),
        ({"regularizer": "l2"}, "orthogonal, srip, spectral"),
    ],
)
def test_settings(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tfdq.quantize_model(every_layer(), **options)
    plain = tf_keras.Sequential([L.Dense(2, input_shape=(3,))])
    annotated = tfmot.quantization.keras.quantize_annotate_model(plain)
    with pytest.raises(ValueError, match=message):
        tfmot.quantization.keras.quantize_apply(annotated, tfdq.DefensiveQuantizeScheme(**options))


def test_all_unsupported_layers_are_listed_at_once() -> None:
    inputs = L.Input((8, 8, 3))
    x = L.Conv2D(4, 3, activation="tanh", name="tanh_conv")(inputs)
    x = L.Conv2DTranspose(4, 3, name="transposed")(x)
    x = L.LeakyReLU(name="leaky")(x)
    x = L.Conv2D(4, 3, groups=2, name="grouped")(x)
    x = L.Dense(4, name="deep_dense")(x)
    x = L.ReLU(max_value=4.0, name="relu4")(x)
    x = L.Flatten()(x) * 2.0
    with pytest.raises(ValueError, match="cannot be quantized") as error:
        tfdq.quantize_model(tf_keras.Model(inputs, x))
    text = str(error.value)
    for name in ("tanh_conv", "transposed", "leaky", "grouped", "deep_dense", "relu4", "multiply"):
        # tf_keras numbers operations: tf.math.multiply is _1, _2 ... after others of this process.
        assert re.search(rf"'(tf\.math\.)?{name}(_\d+)?' \(", text), name
    for remedy in ("replace it", "skip=", "QuantizeConfig"):
        assert remedy in text
    assert "7 layer(s)" in text


def test_a_shared_layer_with_weights() -> None:
    shared = L.Conv2D(3, 1, name="shared")
    inputs = L.Input((4, 4, 3))
    with pytest.raises(ValueError, match=r"'shared'.*called 2 times"):
        tfdq.quantize_model(tf_keras.Model(inputs, shared(shared(inputs))))


def test_quantized_already() -> None:
    qat = tfdq.quantize_model(every_layer())
    with pytest.raises(ValueError, match="quantized already"):
        tfdq.quantize_model(qat)


def test_unbuilt_and_subclassed() -> None:
    class Subclassed(tf_keras.Model):
        def call(self, inputs: object) -> object:
            return inputs

    for model in (tf_keras.Sequential([L.Dense(2)]), Subclassed()):
        with pytest.raises(ValueError, match="not a built Functional or Sequential model"):
            tfdq.quantize_model(model)


def test_not_a_model() -> None:
    with pytest.raises(TypeError, match="got str"):
        tfdq.quantize_model("model.keras")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite(value: float) -> None:
    model = every_layer()
    kernel = model.get_layer("branch").kernel
    values = kernel.numpy()
    values[0, 0, 0, 0] = value
    kernel.assign(values)
    with pytest.raises(ValueError, match=r"branch/kernel.*NaN or infinite"):
        tfdq.quantize_model(model)


def test_calibrate_without_images_or_ranges() -> None:
    qat = tfdq.quantize_model(every_layer())
    with pytest.raises(ValueError, match="no images"):
        tfdq.calibrate(qat, np.zeros((0, 8, 8, 1), np.float32))
    with pytest.raises(ValueError, match="no layer whose range"):
        tfdq.calibrate(every_layer(), np.zeros((4, 8, 8, 1), np.float32))
