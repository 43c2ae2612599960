"""Error amplification against a layer-by-layer computation in NumPy and a closed form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tf_keras

import tfdq
from tfdq.quantization import read_graph
from tfdq.robustness import BitDepthSqueeze, attack, error_amplification, squeeze
from tfdq.robustness.amplification import depth_axis
from tflite_export import IntegerTwin, convert

layers = tf_keras.layers


def dense_network() -> tuple[tf_keras.Model, list[np.ndarray]]:
    """A bias-free ReLU network on vectors of 6, with its kernels."""
    tf_keras.utils.set_random_seed(0)
    model = tf_keras.Sequential(
        [
            layers.Input((6,)),
            layers.Dense(5, use_bias=False, name="first"),
            layers.ReLU(),
            layers.Dense(4, use_bias=False, name="second"),
        ]
    )
    return model, model.get_weights()


def relative(clean: np.ndarray, moved: np.ndarray) -> np.ndarray:
    return np.linalg.norm(moved - clean, axis=1) / np.linalg.norm(clean, axis=1)


def test_equals_numpy_layer_by_layer() -> None:
    model, (first, second) = dense_network()
    rng = np.random.default_rng(1)
    x = rng.normal(size=(37, 6)).astype(np.float32)
    x_adv = x + rng.normal(scale=0.1, size=x.shape).astype(np.float32)
    curve = error_amplification(model, x, x_adv, batch_size=10).curve("model")
    hidden = [np.maximum(v.astype(np.float64) @ first, 0) for v in (x, x_adv)]
    wanted = [
        relative(x, x_adv),
        relative(*hidden),
        relative(*(h @ second for h in hidden)),
    ]
    assert curve.layers == ("input", "first", "second")
    np.testing.assert_allclose(curve.distance, [w.mean() for w in wanted], rtol=1e-5)
    np.testing.assert_allclose(curve.deviation, [w.std() for w in wanted], rtol=1e-4)
    np.testing.assert_allclose(
        curve.amplification, np.array(curve.distance) / curve.distance[0], rtol=1e-6
    )


def test_orthogonal_network_does_not_amplify() -> None:
    rng = np.random.default_rng(2)
    model = tf_keras.Sequential(
        [layers.Input((8,)), *(layers.Dense(8, use_bias=False) for _ in range(4))]
    )
    model.set_weights([np.linalg.qr(rng.normal(size=(8, 8)))[0] for _ in range(4)])
    x = rng.normal(size=(20, 8)).astype(np.float32)
    curve = error_amplification(model, x, x * 1.1).curve("model")
    np.testing.assert_allclose(curve.distance, 0.1, rtol=1e-4)


def test_float_and_quantized_models_share_the_depth_axis(
    float_model: Any, quantized: Any, digits: Any
) -> None:
    float_points = [name for name, _ in depth_axis(read_graph(float_model))]
    four_points = [name for name, _ in depth_axis(read_graph(quantized(4)))]
    assert float_points == four_points == ["input", "conv1", "conv2", "logits"]
    x = digits.x_test[:64]
    x_adv = attack("fgsm", float_model, x, digits.y_test[:64], 0.1, early_stop=False)
    found = error_amplification({"float": float_model, "4 bits": quantized(4)}, x, x_adv)
    assert found.curve("float").layers == found.curve("4 bits").layers
    # The activation counts behind its quantizer: levels of 6/15 at four bits.
    clean = quantized(4).get_layer("quant_conv1")
    at = dict(depth_axis(read_graph(quantized(4))))["conv1"]
    assert read_graph(quantized(4)).nodes[at].layer is clean


def test_the_file_amplifies_as_the_model_it_was_made_of(digits: Any) -> None:
    """Its operators with weights and its sums are the model's layers; one integer may differ."""
    model = tfdq.quantize_model(_residual(), 0.0, input_range=(0.0, 1.0))
    x = digits.x_test[:32]
    tfdq.calibrate(model, x)
    twin = IntegerTwin(convert(model, golden=0, verify_samples=4).content)
    moved = np.clip(x + np.random.default_rng(0).uniform(-0.1, 0.1, x.shape), 0, 1)
    found = error_amplification({"model": model, "file": twin}, x, moved.astype(np.float32))
    ours, theirs = found.curve("model"), found.curve("file")
    assert len(ours.layers) == len(theirs.layers) == 5
    np.testing.assert_allclose(theirs.distance, ours.distance, rtol=1e-3)
    assert theirs.distance[-1] > 0


def test_the_point_is_behind_norm_and_relu(float_model: Any, digits: Any) -> None:
    x = digits.x_test[:16]
    x_adv = np.clip(x + 0.05, 0, 1)
    probe = tf_keras.Model(float_model.input, float_model.get_layer("relu1").output)
    pair = [probe(v).numpy().reshape(16, -1).astype(np.float64) for v in (x, x_adv)]
    curve = error_amplification(float_model, x, x_adv).curve("model")
    assert curve.distance[1] == pytest.approx(relative(*pair).mean(), rel=1e-4)


def test_residual_sums_count(digits: Any) -> None:
    model = tfdq.quantize_model(_residual(), activation_bits=4, input_range=(0, 1))
    model(digits.x_train[:64], training=True)
    wanted = ["input", "a", "b", "add", "head"]
    assert [name for name, _ in depth_axis(read_graph(_residual()))] == wanted
    assert [name for name, _ in depth_axis(read_graph(model))] == wanted


def _residual() -> tf_keras.Model:
    image = layers.Input((8, 8, 1))
    x = layers.Conv2D(4, 3, padding="same", name="a")(image)
    x = layers.ReLU()(x)
    y = layers.BatchNormalization()(layers.Conv2D(4, 3, padding="same", name="b")(x))
    x = layers.ReLU()(layers.Add(name="add")([x, y]))
    return tf_keras.Model(image, layers.Dense(10, name="head")(layers.Flatten()(x)))


def test_a_float_model_of_keras_3_equals_its_parts() -> None:
    """Its operations and nested models count as layers do, in inference mode."""
    keras.utils.set_random_seed(0)
    inner = keras.Sequential(
        [keras.Input((8, 8, 4)), keras.layers.Conv2D(4, 3, padding="same", name="b")]
    )
    image = keras.Input((8, 8, 1))
    first = keras.layers.Conv2D(4, 3, padding="same", name="a")(image)
    first = keras.ops.relu(keras.layers.BatchNormalization()(first))
    joined = keras.layers.ReLU()(inner(keras.layers.Dropout(0.5)(first)) + first)
    logits = keras.layers.Dense(3, name="head")(keras.layers.Flatten()(joined))
    model = keras.Model(image, logits)
    rng = np.random.default_rng(0)
    x = rng.random((8, 8, 8, 1)).astype(np.float32)
    moved = np.clip(x + rng.uniform(-0.1, 0.1, x.shape), 0, 1).astype(np.float32)
    curve = error_amplification(model, x, moved).curve("model")
    probe = keras.Model(image, [image, first, inner(first), joined, logits])
    pairs = zip(*(probe.predict(v, verbose=0) for v in (x, moved)), strict=True)
    expected = [relative(*(v.reshape(8, -1).astype(np.float64) for v in pair)) for pair in pairs]
    assert [curve.layers[i] for i in (0, 1, 2, 4)] == ["input", "a", "b", "head"]
    np.testing.assert_allclose(curve.distance, np.mean(expected, axis=1), rtol=1e-5)


def test_squeezed_models_are_flattened(float_model: Any, digits: Any) -> None:
    model = squeeze(float_model, [BitDepthSqueeze(3)])
    x = digits.x_test[:16]
    curve = error_amplification(model, x, np.clip(x + 0.02, 0, 1)).curve("model")
    assert curve.layers == ("input", "conv1", "conv2", "logits")


def test_the_model_is_not_changed(float_model: Any, digits: Any) -> None:
    before = [len(layer.inbound_nodes) for layer in float_model.layers]
    weights = [w.copy() for w in float_model.get_weights()]
    error_amplification(float_model, digits.x_test[:8], digits.x_test[8:16])
    assert [len(layer.inbound_nodes) for layer in float_model.layers] == before
    for old, new in zip(weights, float_model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_strengths_and_plots(float_model: Any, other_float_model: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, (12, 8, 8, 1)).astype(np.float32)
    noise = rng.uniform(-1, 1, x.shape).astype(np.float32)
    models = {"a": float_model, "b": other_float_model}
    moved = {0.02: x + 0.02 * noise, 0.1: {"a": x + 0.1 * noise, "b": x + 0.1 * noise}}
    found = error_amplification(models, x, moved)
    assert len(found.curves) == 4
    small, large = found.curve("a", 0.02), found.curve("a", 0.1)
    assert large.distance[0] == pytest.approx(5 * small.distance[0], rel=1e-4)
    depth = found.plot_depth(tmp_path / "depth.png")
    lines = depth.axes[0].get_lines()
    assert [line.get_label() for line in lines] == ["a", "b"]
    np.testing.assert_allclose(lines[0].get_ydata(), large.distance)
    strength = found.plot_strength(tmp_path / "strength.png", depth=1)
    np.testing.assert_allclose(
        strength.axes[0].get_lines()[0].get_ydata(), [small.distance[1], large.distance[1]]
    )
    assert (tmp_path / "depth.png").exists()
    assert (tmp_path / "strength.png").exists()
    data = json.loads(found.to_json(tmp_path / "curves.json"))
    assert len(data["curves"]) == 4
    assert "| a | 0.02 |" in found.to_markdown()
    with pytest.raises(KeyError, match="curves fit"):
        found.curve("a")


def test_black_images_do_not_divide_by_zero(float_model: Any) -> None:
    x = np.zeros((4, 8, 8, 1), np.float32)
    x[0] = 0.5
    curve = error_amplification(float_model, x, x + 0.1).curve("model")
    assert curve.examples[0] == 1
    assert curve.distance[0] == pytest.approx(0.2, rel=1e-5)


def test_bad_input_is_named(float_model: Any, digits: Any) -> None:
    x = digits.x_test[:4]
    with pytest.raises(ValueError, match="models is empty"):
        error_amplification({}, x, x)
    with pytest.raises(ValueError, match="shape"):
        error_amplification(float_model, x, x[:3])
    with pytest.raises(ValueError, match="NaN"):
        error_amplification(float_model, x, x * np.nan)
    with pytest.raises(KeyError, match="no images for 'b'"):
        error_amplification({"b": float_model}, x, {"a": x})
    with pytest.raises(ValueError, match="x_adv is empty"):
        error_amplification(float_model, x, {})
    with pytest.raises(ValueError, match="no strengths"):
        error_amplification(float_model, x, x).plot_strength()
    image = layers.Input((8, 8, 1))
    lambda_like = tf_keras.Model(image, layers.Dense(3)(layers.Flatten()(image + image)))
    with pytest.raises(ValueError, match="use a layer for it"):
        error_amplification(lambda_like, x, x)
