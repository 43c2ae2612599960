"""Layers and operations left in float compute what they did, with all arguments of their calls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from tfdq.keras3 import QuantizedModel, calibrate, quantize_model
from tflite_export import convert

L = keras.layers
ops = keras.ops
pytestmark = pytest.mark.backends


def images(count: int = 16) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 6, 6, 4)).astype(np.float32)


def numpy(tensor: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def sequence(x: Any) -> Any:
    return L.Reshape((36, 4))(x)


def shared(x: Any) -> Any:
    layer = L.Dense(4)
    return layer(layer(x))


CALLS: dict[str, Callable[[Any], Any]] = {
    "leaky_relu": lambda x: ops.leaky_relu(x, 0.3),
    "softmax": lambda x: ops.softmax(x, 1),
    "2 - x": lambda x: 2.0 - x * 2.0,
    "slice": lambda x: x[:, 1:-1, ::2, :2],
    "where": lambda x: ops.where(x > 0, x, x * 0.5),
    "concatenate": lambda x: ops.concatenate([x, x * 2.0, x], axis=1),
    "MultiHeadAttention": lambda x: L.MultiHeadAttention(2, 3)(
        sequence(x), sequence(x * 2.0), use_causal_mask=True
    ),
    "BatchNormalization at inference": lambda x: L.BatchNormalization()(x, training=False),
    "shared": shared,
}


@pytest.mark.parametrize("case", CALLS)
def test_it_computes_what_the_float_model_does(case: str, tmp_path: Path) -> None:
    image = keras.Input((6, 6, 4))
    model = keras.Model(image, CALLS[case](image))
    names = {op.name for op in model.operations if not isinstance(op, L.InputLayer)}
    quantized = calibrate(quantize_model(model, skip=names), images())
    # The input has 8 bits, and nothing else is rounded.
    step = float(quantized.layers[1].grid().scale)
    zero = quantized.layers[1].grid().zero_point
    rounded = np.clip(np.rint(images() / step), -128 - zero, 127 - zero) * step
    wanted = numpy(model(rounded.astype(np.float32), training=False))
    found = quantized.predict(images(), verbose=0)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    quantized.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.predict(images(), verbose=0), found)


def network() -> keras.Model:
    """A layer in float between quantized ones, and a second output behind one."""
    image = keras.Input((6, 6, 4), name="image")
    x = L.Conv2D(6, 3, activation="relu", name="first")(image)
    x = L.LayerNormalization(name="norm")(x)
    x = L.Conv2D(8, 3, name="second")(x)
    x = L.ReLU()(L.BatchNormalization(name="own")(x))
    logits = L.Dense(3, name="logits")(L.Flatten()(x))
    return keras.Model(image, {"logits": logits, "shares": L.Softmax(name="shares")(logits)})


@pytest.fixture(scope="module")
def fitted() -> QuantizedModel:
    model = quantize_model(network(), 1e-3, activation_bits=4, skip=["norm", "own", "shares"])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", {"logits": loss})
    history = model.fit(images(), {"logits": np.arange(16) % 3}, verbose=0, epochs=2)
    assert history.history["loss"][1] < history.history["loss"][0]
    return model


def test_it_trains_between_quantized_layers(fitted: QuantizedModel) -> None:
    found = fitted.predict(images(), verbose=0)
    assert set(found) == {"logits", "shares"}
    shares = np.exp(found["logits"]) / np.exp(found["logits"]).sum(-1, keepdims=True)
    np.testing.assert_allclose(found["shares"], shares, rtol=1e-4)
    norm = fitted.get_layer("norm")
    assert not np.array_equal(numpy(norm.gamma), np.ones(6))
    assert type(norm) is L.LayerNormalization
    assert type(fitted.get_layer("own")) is L.BatchNormalization
    # What is behind a layer in float is on a grid again.
    quantizer = fitted.get_layer("norm_quantizer")
    probe = keras.Model(fitted.inputs, quantizer.output[0])
    integers = numpy(probe([images()], training=False))
    np.testing.assert_array_equal(integers, np.rint(integers))
    assert len(np.unique(integers)) > 32


def test_a_call_at_inference_stays_one_in_fit(tmp_path: Path) -> None:
    """Also of a model around; what is trained of the layer goes on being trained."""
    image = keras.Input((6, 6, 4))
    inner = keras.Sequential([L.Input((6, 6, 4)), L.BatchNormalization(name="within")])
    x = L.BatchNormalization(name="direct")(image, training=False)
    x = L.Conv2D(6, 3, name="conv")(inner(x, training=False))
    model = keras.Model(image, L.Dense(3)(L.Flatten()(x)))
    quantized = quantize_model(model, 0.0, skip=["direct", "within"])
    quantized.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    quantized.fit(images(), np.arange(16) % 3, verbose=0)
    for name in ("direct", "within"):
        gamma, _, mean, variance = quantized.get_layer(name).get_weights()
        assert (gamma != 1).any()
        np.testing.assert_array_equal(mean, 0)
        np.testing.assert_array_equal(variance, 1)
    quantized.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    expected = quantized.predict(images(), verbose=0)
    np.testing.assert_array_equal(again.predict(images(), verbose=0), expected)


def test_it_does_not_export(fitted: QuantizedModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'norm', 'own', 'shares', and does not export"):
        convert(fitted, tmp_path / "model.tflite")


def test_what_cannot_stay_in_float_is_named() -> None:
    with pytest.raises(ValueError, match=r"no layer is called \['nowhere'\]"):
        quantize_model(network(), skip=["nowhere"])
    image = keras.Input((6, 6, 4))
    parts = ops.split(image, 2, axis=-1)
    model = keras.Model(image, L.Flatten()(parts[1]))
    name = next(operation.name for operation in model.operations if "split" in operation.name)
    with pytest.raises(ValueError, match=r"stay in float and has 2 outputs"):
        quantize_model(model, skip=[name])
