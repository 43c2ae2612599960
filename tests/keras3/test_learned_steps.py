"""Learned steps: one training step against the published formulas, and the deployed integers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import tfdq
from tests.exhaustive import only
from tests.keras3.deployed import assert_deployed
from tests.keras3.networks import conv_bn
from tfdq.keras3 import QuantizedModel, calibrate, quantize_model
from tflite_export import convert

L = keras.layers
backends = pytest.mark.backends
LEARNED: dict[str, Any] = {"activation_range": "learned", "kernel_range": "learned"}
CASES = ["float32-4", "float32-8", "mixed_bfloat16-2"]
TENSORFLOW = keras.backend.backend() == "tensorflow"


def numpy(tensor: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(tensor))


class Published:
    """One layer ``relu(x w + b)``, 3 and 2 bits, by the formulas of Esser et al., in float64.

    Args:
        x: what it takes, ``(n, in)``.
        kernel: ``(in, out)``.
        bias: ``(out,)``.
        axis: 0: each output channel has a step of its own; None: one for the kernel.
    """

    def __init__(self, x: np.ndarray, kernel: np.ndarray, bias: np.ndarray, axis: int | None):
        self.x, self.kernel, self.bias, self.axis = x, kernel, bias, axis
        self.kernel_step = 2 * np.abs(kernel).mean(axis) / np.sqrt(3)
        scaled = kernel / self.kernel_step
        self.integers = np.round(np.clip(scaled, -3, 3))
        self.of_kernel_step = np.where(np.abs(scaled) < 3, self.integers - scaled, self.integers)
        self.kernel_inside = np.abs(scaled) < 3
        self.sums = x @ (self.integers * self.kernel_step) + bias
        values = np.maximum(self.sums, 0)
        self.step = 2 * values.mean() / np.sqrt(3)
        scaled = values / self.step
        levels = np.round(np.clip(scaled, 0, 3))
        self.result = levels * self.step
        self.of_step = np.where(scaled < 3, levels - scaled, levels)
        self.inside = scaled < 3

    def descend(self, y: np.ndarray, rate: float) -> None:
        """Take one step of gradient descent on the mean squared error."""
        gradient = 2 * (self.result - y) / y.size
        of_sums = gradient * self.inside * (self.sums > 0)
        of_kernel = self.x.T @ of_sums
        shared = self.kernel.size if self.axis is None else len(self.kernel)
        self.step -= rate * (gradient * self.of_step).sum() / np.sqrt(y.shape[1] * 3)
        of_steps = (of_kernel * self.of_kernel_step).sum(self.axis)
        self.kernel_step = self.kernel_step - rate * of_steps / np.sqrt(shared * 3)
        self.kernel = self.kernel - rate * of_kernel * self.kernel_inside
        self.bias = self.bias - rate * of_sums.sum(0)


@pytest.mark.parametrize("axis", [pytest.param(None, marks=backends), 0])
def test_a_training_step_is_the_published_one(axis: int | None) -> None:
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 256, (16, 6))
    kernel, bias = rng.normal(size=(6, 5)), rng.uniform(0.5, 1.5, 5)
    # Beyond the grid of the kernel, and of the result.
    kernel[:, 1] *= 0.1
    kernel[0, 1], pixels[0] = 6.0, 255
    y = rng.normal(size=(16, 5))
    dense = L.Dense(5, activation="relu", name="layer")
    layer = dense if axis is None else L.Conv2D(5, 1, activation="relu", name="layer")
    shape = (6,) if axis is None else (1, 1, 6)
    float_model = keras.Sequential([keras.Input(shape), layer, L.Flatten()])
    layer.kernel.assign(kernel.reshape(layer.kernel.shape))
    layer.bias.assign(bias)
    model = quantize_model(
        float_model, 0.0, weight_bits=3, activation_bits=2, input_range=(0.0, 1.0), **LEARNED
    )
    wanted = Published(pixels / 255, kernel, bias, axis)
    assert not wanted.inside.all()
    assert not wanted.kernel_inside.all()
    quantized = model.get_layer("layer")
    images = (pixels / 255).astype(np.float32).reshape(16, *shape)
    found = numpy(model(images, training=True))
    np.testing.assert_allclose(found, wanted.result, rtol=1e-5)
    model.compile(keras.optimizers.SGD(0.3), "mse")
    model.train_on_batch(images, y.astype(np.float32))
    before = wanted.step, wanted.kernel_step
    wanted.descend(y, 0.3)
    np.testing.assert_allclose(quantized.range.steps.deployed(), wanted.step, rtol=1e-5)
    np.testing.assert_allclose(quantized.kernel_steps.deployed(), wanted.kernel_step, rtol=1e-5)
    np.testing.assert_allclose(numpy(quantized.kernel).reshape(6, 5), wanted.kernel, atol=1e-5)
    np.testing.assert_allclose(numpy(quantized.bias), wanted.bias, atol=1e-5)
    assert abs(wanted.step / before[0] - 1) > 1e-3
    assert np.abs(wanted.kernel_step / before[1] - 1).max() > 1e-2


CONSUMERS = {
    "Flatten": (lambda x: L.Flatten()(x), 1.0),
    "mean": (lambda x: L.GlobalAveragePooling1D()(x), 1 / 6),
    "norm": (lambda x: L.BatchNormalization()(x, training=False), 1.001**-0.5),
}


@backends
@pytest.mark.parametrize("name", CONSUMERS)
def test_a_step_is_learned_through_what_takes_its_result(name: str) -> None:
    """By the closed form: what each result moves with its step, times its share of the output."""
    consumer, share = CONSUMERS[name]
    image = keras.Input((6, 4))
    dense = L.Dense(5, activation="relu", name="layer")
    float_model = keras.Model(image, L.Flatten()(consumer(dense(image))))
    rng = np.random.default_rng(3)
    x = (rng.integers(0, 256, (16, 6, 4)) / 255).astype(np.float32)
    dense.kernel.assign(rng.normal(0.0, 0.7, (4, 5)) * [1, 1, 1, 1, 6])
    model = quantize_model(
        float_model, 0.0, activation_bits=2, input_range=(0.0, 1.0), activation_range="learned"
    )
    layer = model.get_layer("layer")
    layer.bias.assign(np.linspace(0.2, 1.0, 5))
    model(x, training=True)
    for other in model.layers:
        if hasattr(getattr(other, "range", None), "high"):
            # So that no result is at an end of its range, or beyond by rounding.
            other.range.high.assign(2.0 * numpy(other.range.high))
            other.range.low.assign(-numpy(other.range.high))
    step = float(layer.range.steps.deployed())
    kernel = numpy(layer.kernel).reshape(4, 5).astype(np.float64)
    scaled = np.maximum(x @ kernel + np.linspace(0.2, 1.0, 5), 0) / step
    assert (scaled > 3).any()
    of_step = np.where(scaled < 3, np.round(scaled) - scaled, 3.0)
    model.compile(keras.optimizers.SGD(1e-2), lambda y, out: keras.ops.sum(out, axis=-1))
    model.train_on_batch(x, np.zeros((16, 1), np.float32))
    moved = (step - float(layer.range.steps.deployed())) / 1e-2
    # Kernels have 8 bits, and so do the results of mean and norm.
    wanted = share * of_step.sum() / 16 / np.sqrt(30 * 3)
    assert moved == pytest.approx(wanted, rel=0.1)
    assert abs(wanted) > 0.05


def residual() -> keras.Model:
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 1), name="image")
    x = L.ReLU()(conv_bn(image, 8, 3))
    y = L.DepthwiseConv2D(3, padding="same", activation="relu6")(x)
    x = L.ReLU()(L.Add()([x, conv_bn(y, 8, 1)]))
    if TENSORFLOW:
        twice = L.Dense(8, activation="relu")
        gate = twice(twice(L.GlobalAveragePooling2D()(x)))
        x = L.ReLU()(L.Multiply()([x, L.Reshape((1, 1, 8))(gate)]))
    return keras.Model(image, L.Dense(3, name="logits")(L.Flatten()(x)))


def images(count: int = 16) -> np.ndarray:
    return np.random.default_rng(0).random((count, 8, 8, 1)).astype(np.float32)


@pytest.fixture(scope="module", params=only(CASES, *CASES[-2 if TENSORFLOW else -1 :]))
def trained(request: pytest.FixtureRequest) -> Iterator[QuantizedModel]:
    """Return a network with every place that a learned step may have, trained a little."""
    policy, bits = request.param.split("-")
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    model = quantize_model(
        residual(), 1e-3, weight_bits=int(bits), activation_bits=int(bits), **LEARNED
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss)
    history = model.fit(images(), np.arange(16) % 3, batch_size=8, epochs=2, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    yield model
    keras.config.set_dtype_policy(before)


def factors(model: Any) -> dict[str, np.ndarray]:
    return {v.path: numpy(v) for v in model.variables if v.name.endswith("step_factor")}


@backends
def test_the_trained_network_is_what_the_runtime_computes(trained: QuantizedModel) -> None:
    # The kernels; behind a ReLU two convolutions, a sum, the calls of a Dense, and a product.
    assert len(factors(trained)) == (5 + 6 if TENSORFLOW else 4 + 3)
    assert all((factor != 1.0).any() for factor in factors(trained).values())
    assert_deployed(trained, images())
    if TENSORFLOW:
        exported = convert(trained, calibration=images(8))
        assert exported.parity.exact
        assert exported.parity.agreement == 1.0


def test_it_is_saved_and_loaded(trained: QuantizedModel, tmp_path: Path) -> None:
    wanted = trained.predict(images(), verbose=0)
    trained.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    # With the constants that were saved, and with those made anew.
    for make_anew in (lambda: None, again.seal):
        make_anew()
        np.testing.assert_array_equal(numpy(again(images(), training=False)), wanted)
    assert len(again.trainable_variables) == len(trained.trainable_variables)


def test_what_does_not_train_has_the_step_of_the_first_batch() -> None:
    image = keras.Input((6,))
    x = L.Dense(4, activation="relu", trainable=False, name="frozen")(image)
    x = L.Dense(4, activation="relu", name="inference")(x, training=False)
    float_model = keras.Model(image, L.Dense(2)(x))
    model = quantize_model(float_model, 0.0, input_range=(0.0, 1.0), **LEARNED)
    x, y = images().reshape(-1, 64)[:, :6], images(16)[:, 0, 0, :1]
    model.compile("sgd", "mse")
    model.fit(x, y, batch_size=16, epochs=1, verbose=0)
    frozen, inference = model.get_layer("frozen"), model.get_layer("inference")
    first = {layer.name: float(layer.range.steps.deployed()) for layer in (frozen, inference)}
    before = numpy(inference.kernel).copy()
    # Other images: a step that is calibrated anew, or follows, would be another.
    model.fit(x * 0.5, y, batch_size=16, epochs=1, verbose=0)
    calibrate(model, x * 0.25)
    for layer in (frozen, inference):
        assert float(layer.range.steps.deployed()) == first[layer.name]
    assert not frozen.trainable_variables
    np.testing.assert_array_equal(numpy(frozen.kernel_steps.factor), 1.0)
    assert (numpy(inference.kernel) != before).any()
    assert (numpy(inference.kernel_steps.factor) != 1.0).any()


def test_the_penalty_acts_on_the_effective_kernel_and_is_blind_to_its_length() -> None:
    image = keras.Input((6,))
    norm = L.BatchNormalization(center=False, scale=False)
    float_model = keras.Model(image, L.ReLU()(norm(L.Dense(5, use_bias=False)(image))))
    drawn = np.random.default_rng(0).normal(0.0, 0.5, (6, 5))
    float_model.layers[1].kernel.assign(drawn)
    model = quantize_model(float_model, 0.5, target=0.8, weight_bits=3, **LEARNED)
    layer = next(layer for layer in model.layers if hasattr(layer, "kernel"))
    model(images().reshape(-1, 64)[:, :6], training=True)
    # So far from where they started that a part of the kernel is clipped.
    layer.kernel_steps.factor.assign(np.linspace(0.3, 0.8, 5))
    kernel = numpy(layer.kernel).astype(np.float64)
    step = layer.kernel_steps.deployed().astype(np.float64)
    integers = np.round(np.clip(kernel / step, -3, 3))
    assert (np.abs(kernel / step) > 3.5).any()
    np.testing.assert_array_equal(layer.quantized_kernel().integers, integers)
    factor = 1 / np.sqrt(numpy(layer.moving_variance).astype(np.float64) + norm.epsilon)
    effective = integers * step * factor
    gram = effective.T @ effective - 0.64 * np.eye(5)
    model.seal()
    model(images().reshape(-1, 64)[:, :6], training=False)
    found = float(numpy(model.losses[0]))
    assert found == pytest.approx(0.25 * np.square(gram).sum(), rel=1e-4)
    # One step of the penalty alone: none but across each channel of the effective kernel.
    of_effective = 0.5 * 2 * effective @ gram * factor
    direction = integers / np.linalg.norm(integers, axis=0)
    across = of_effective - direction * (direction * of_effective).sum(0)
    inside = np.abs(kernel / step) < 3
    model.compile(keras.optimizers.SGD(1e-3), lambda y, out: 0.0 * keras.ops.sum(out))
    # Without a change of the statistics, which the penalty divides by.
    layer.norm["momentum"] = 1.0
    model.train_on_batch(images().reshape(-1, 64)[:, :6], np.zeros((16, 5), np.float32))
    np.testing.assert_allclose(numpy(layer.kernel), kernel - 1e-3 * across * inside, atol=1e-6)
    wanted = (across * np.where(inside, integers - kernel / step, integers)).sum(0)
    moved = step - layer.kernel_steps.deployed()
    np.testing.assert_allclose(moved, 1e-3 * wanted / np.sqrt(6 * 3), rtol=1e-3)


def test_a_step_that_has_seen_nothing_is_named() -> None:
    image = keras.Input((4,))
    model = quantize_model(
        keras.Model(image, L.Dense(3, activation="relu", name="it")(image)),
        0.0,
        input_range=(0.0, 1.0),
        **LEARNED,
    )
    layer = model.get_layer("it")
    layer.bias.assign(np.full(3, -100.0))
    x = images().reshape(-1, 64)[:, :4]
    with pytest.raises(ValueError, match="step of layer 'it' has not seen any data yet, or none"):
        calibrate(model, x)
    layer.bias.assign(np.ones(3))
    calibrate(model, x)
    layer.range.steps.factor.assign(-1.0)
    with pytest.raises(ValueError, match=r"step of layer 'it' .* lower learning rate"):
        model.predict(x, verbose=0)


def test_tf_keras_models_are_refused_with_the_remedy() -> None:
    import tf_keras

    model = tf_keras.Sequential([tf_keras.layers.Dense(2, input_shape=(4,))])
    for name in LEARNED:
        with pytest.raises(ValueError, match=rf"{name}='learned'.*tfdq\.to_keras3\(model\)"):
            tfdq.quantize_model(model, **{name: "learned"})
