"""Penalties of kernels with BatchNorm folded in: their values stay, no channel's length moves."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfdq
from tfdq import penalties
from tfdq.penalties.direction_rate import DIRECTION_RATE
from tfdq.penalties.scale_blind import scale_blind

L = tf_keras.layers
PENALTIES = ["orthogonal", "srip", "spectral", "conv_orthogonal", "own"]


@tf_keras.saving.register_keras_serializable(package="tests")
class OwnPenalty(tf_keras.regularizers.Regularizer):
    """A user's own penalty: the sum of cubes of the deployed kernel."""

    def __init__(self, on: str) -> None:
        self.on = on

    def __call__(self, kernel: tf.Tensor) -> tf.Tensor:
        """Return half the sum of the absolute cubes."""
        return 0.5 * tf.reduce_sum(tf.abs(kernel) ** 3)

    def get_config(self) -> dict:
        """Return the arguments of the constructor."""
        return {"on": self.on}


def network() -> tf_keras.Model:
    """Return a convolution, two depthwise ones, a dense one with BatchNorm, and one without."""
    image = L.Input((6, 6, 3))
    x = L.Conv2D(5, 3, use_bias=False, name="conv")(image)
    x = L.ReLU()(L.BatchNormalization(momentum=0.9)(x))
    x = L.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")(x)
    x = L.ReLU()(L.BatchNormalization(momentum=0.9)(x))
    x = L.Conv2D(10, 3, padding="same", activation="relu", name="plain")(x)
    x = L.Dense(8, name="dense")(L.Flatten()(x))
    x = L.ReLU()(L.BatchNormalization(momentum=0.9, scale=False)(x))
    model = tf_keras.Model(image, L.Dense(4, name="logits")(x))
    rng = np.random.default_rng(0)
    model.set_weights(
        [
            rng.uniform(0.3, 2.0, w.shape) if w.ndim == 1 else rng.normal(size=w.shape) / 2
            for w in model.get_weights()
        ]
    )
    return model


def quantized(name: str, on: str, **settings) -> tf_keras.Model:
    penalty = OwnPenalty(on) if name == "own" else penalties.get_regularizer(name, 0.3, on)
    return tfdq.quantize_model(network(), regularizer=penalty, **settings)


def kernels(model: tf_keras.Model) -> dict:
    return {w.layer.name: w.layer for w in model.layers if getattr(w, "kernel_quantizer", None)}


def channels(layer: tf_keras.layers.Layer, values: tf.Tensor) -> np.ndarray:
    """Return a kernel's columns, ``(taps, output channels)``, float64."""
    kept = 2 if layer.depthwise else 1
    values = np.asarray(values, np.float64)
    return values.reshape(-1, int(np.prod(values.shape[-kept:])))


def gradients(model: tf_keras.Model) -> dict:
    layers = kernels(model)
    with tf.GradientTape() as tape:
        total = tf.add_n(model.losses)
    found = tape.gradient(total, [layer.trained_kernel for layer in layers.values()])
    return dict(zip(layers, found, strict=True))


def radial_parts(layer: tf_keras.layers.Layer, gradient: tf.Tensor) -> np.ndarray:
    """Return the cosine between each channel of a kernel and its gradient."""
    w, g = channels(layer, layer.trained_kernel), channels(layer, gradient)
    return np.sum(w * g, 0) / (np.linalg.norm(w, axis=0) * np.linalg.norm(g, axis=0) + 1e-12)


@pytest.mark.parametrize("on", ["folded", "deployed"])
@pytest.mark.parametrize("name", PENALTIES)
def test_no_channels_length_is_pulled_behind_batch_norm(name: str, on: str) -> None:
    model = quantized(name, on)
    layers = kernels(model)
    for key, gradient in gradients(model).items():
        cosines = np.abs(radial_parts(layers[key], gradient))
        assert np.linalg.norm(gradient) > 1e-4, key
        if key in ("conv", "depthwise", "dense"):
            assert np.max(cosines) < 1e-4, key
        else:
            # No BatchNorm undoes the length of these: the penalty must act on it.
            assert np.max(cosines) > 0.05, key


@pytest.mark.parametrize("name", PENALTIES)
def test_the_trained_kernel_keeps_its_whole_gradient(name: str) -> None:
    model = quantized(name, "kernel")
    found = gradients(model)
    for key, layer in kernels(model).items():
        penalty = _fresh(layer)
        with tf.GradientTape() as tape:
            expected = penalty(tf.identity(layer.trained_kernel))
        expected = tape.gradient(expected, layer.trained_kernel)
        np.testing.assert_allclose(found[key], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("on", ["folded", "deployed"])
@pytest.mark.parametrize("name", PENALTIES)
def test_the_value_is_the_penalty_of_the_folded_kernel(name: str, on: str) -> None:
    """By NumPy's folding: the kernel, rounded if deployed, times gamma over the deviation."""
    model = quantized(name, on)
    for loss, (key, layer) in zip(model.losses, kernels(model).items(), strict=True):
        kernel = np.asarray(layer.trained_kernel, np.float64)
        if on == "deployed":
            integers, scale = model.get_layer(f"quant_{key}").quantized_kernel()
            kernel = integers * np.asarray(scale, np.float64).reshape(
                kernel.shape[-2:] if layer.depthwise else -1
            )
        factor = layer.folded()[0]
        kernel = kernel * factor.reshape(kernel.shape[-2 if layer.depthwise else -1 :])
        np.testing.assert_allclose(loss, _fresh(layer)(tf.constant(kernel, tf.float32)), rtol=1e-4)


def _fresh(layer: tf_keras.layers.Layer) -> tf_keras.regularizers.Regularizer:
    return type(layer.penalty).from_config(layer.penalty.get_config())


@pytest.mark.parametrize("depthwise", [False, True])
def test_against_finite_differences_of_the_normalised_kernel(depthwise: bool) -> None:
    """The slope is that of ``f(w / |w_c| * L_c)``, the lengths ``L_c`` held, in NumPy."""
    rng = np.random.default_rng(1)
    start = rng.normal(size=(3, 3, 2, 4))
    weights = rng.normal(size=start.shape)
    axes = (0, 1) if depthwise else (0, 1, 2)
    lengths = np.sqrt(np.sum(start**2, axes, keepdims=True))

    def value(kernel: np.ndarray) -> float:
        directions = kernel / np.sqrt(np.sum(kernel**2, axes, keepdims=True))
        return float(np.sum(weights * (directions * lengths) ** 2))

    variable = tf.Variable(start, dtype=tf.float32)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(weights.astype(np.float32) * scale_blind(variable, depthwise) ** 2)
    found = tape.gradient(total, variable).numpy()
    np.testing.assert_allclose(total, value(start), rtol=1e-5)
    for index in np.ndindex(start.shape):
        move = np.zeros_like(start)
        move[index] = 1e-5
        slope = (value(start + move) - value(start - move)) / 2e-5
        np.testing.assert_allclose(found[index], slope, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["orthogonal", "srip", "spectral", "conv_orthogonal"])
def test_a_step_on_a_longer_kernel_is_the_same_step(name: str) -> None:
    """A kernel four times as long, its variance sixteen times: the rate times 16 goes as far.

    The folded kernel is the same before the step, and after it the directions are.
    """
    moved = {}
    for factor in (1.0, 4.0):
        model = quantized(name, "deployed")
        for layer in kernels(model).values():
            if layer.batch_norm is not None:
                layer.batch_norm.epsilon = 0.0
                layer.trained_kernel.assign(layer.trained_kernel * factor)
                variance = layer.batch_norm.moving_variance
                variance.assign(variance * factor**2)
        slopes = gradients(model)
        for key in ("conv", "depthwise", "dense"):
            layer = kernels(model)[key]
            before = channels(layer, layer.trained_kernel)
            # The kernel of "dense", whose BatchNorm has no gamma, keeps the whole gradient.
            rate = 0.01 if key == "dense" else 0.01 / DIRECTION_RATE
            after = before - rate * factor**2 * channels(layer, slopes[key])
            # To first order no length has changed: what the variance says still holds.
            growth = np.linalg.norm(after, axis=0) / np.linalg.norm(before, axis=0) - 1
            step = np.linalg.norm(after - before, axis=0) / np.linalg.norm(before, axis=0)
            np.testing.assert_allclose(growth, np.sqrt(1 + step**2) - 1, atol=1e-6)
            moved.setdefault(key, []).append(after / np.linalg.norm(after, axis=0))
    for directions in moved.values():
        np.testing.assert_allclose(*directions, atol=1e-5)


@pytest.mark.parametrize("name", ["orthogonal", "conv_orthogonal", "own"])
def test_gamma_keeps_the_gradient_and_its_kernel_a_share(name: str) -> None:
    """By differentiating the folded kernel, written out with its lengths held."""
    model = quantized(name, "folded")
    for key in ("conv", "depthwise", "dense"):
        layer, norm = kernels(model)[key], kernels(model)[key].batch_norm
        kernel = layer.trained_kernel
        wanted = [kernel, norm.gamma] if norm.scale else [kernel]
        with tf.GradientTape(persistent=True) as tape:
            total = tf.add_n(model.losses)
            axes = range(kernel.shape.rank - 1 - layer.depthwise)
            lengths = tf.sqrt(tf.reduce_sum(kernel**2, list(axes)))
            factor = tf.math.rsqrt(norm.moving_variance + norm.epsilon)
            if norm.scale:
                factor *= norm.gamma
            folded = kernel / lengths * tf.stop_gradient(lengths)
            folded *= tf.reshape(factor, lengths.shape)
            alone = _fresh(layer)(folded)
        found, whole = tape.gradient(total, wanted), tape.gradient(alone, wanted)
        rate = DIRECTION_RATE if norm.scale else 1.0
        scale = float(tf.reduce_max(tf.abs(whole[0])))
        np.testing.assert_allclose(found[0], rate * whole[0], rtol=1e-3, atol=1e-4 * rate * scale)
        if norm.scale:
            np.testing.assert_allclose(found[1], whole[1], rtol=1e-3)


@pytest.mark.parametrize("on", ["folded", "deployed"])
def test_a_frozen_batch_norm_is_a_constant_that_undoes_nothing(on: str) -> None:
    model = quantized("orthogonal", on)
    layer, wrapper = kernels(model)["conv"], model.get_layer("quant_conv")
    assert np.max(np.abs(radial_parts(layer, gradients(model)["conv"]))) < 1e-5
    # As in a part of a model that is called with training=False.
    wrapper.layer_training = False
    assert np.max(np.abs(radial_parts(layer, gradients(model)["conv"]))) > 0.05
    wrapper.layer_training = None
    layer.batch_norm.trainable = False
    assert np.max(np.abs(radial_parts(layer, gradients(model)["conv"]))) > 0.05


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("length", [0.0, 1e-38, 1e-25, 1e15])
def test_channels_of_any_length_have_finite_gradients(name: str, length: float) -> None:
    model = quantized(name, "deployed")
    for layer in kernels(model).values():
        kernel = layer.trained_kernel.numpy()
        kernel[..., 0] *= length / np.linalg.norm(kernel[..., 0])
        layer.trained_kernel.assign(kernel)
        if layer.batch_norm is not None:
            variance = layer.batch_norm.moving_variance.numpy()
            variance[:: 2 if layer.depthwise else len(variance)] = length**2
            layer.batch_norm.moving_variance.assign(variance)
    found = gradients(model)
    for key in ("conv", "depthwise", "dense"):
        assert np.all(np.isfinite(found[key])), key


def test_a_kernel_of_zeros_keeps_the_gradient() -> None:
    kernel = tf.Variable(np.zeros((3, 3, 2, 4)), dtype=tf.float32)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(3.0 * scale_blind(kernel))
    np.testing.assert_array_equal(tape.gradient(total, kernel), np.full(kernel.shape, 3.0))


def test_half_precision_keeps_its_type() -> None:
    kernel = tf.cast(np.random.default_rng(0).normal(size=(3, 3, 2, 4)), tf.float16)
    with tf.GradientTape() as tape:
        tape.watch(kernel)
        value = scale_blind(kernel)
        total = tf.reduce_sum(tf.cast(value, tf.float32) ** 2)
    slopes = tape.gradient(total, kernel)
    assert value.dtype == slopes.dtype == tf.float16
    np.testing.assert_array_equal(value, kernel)
    np.testing.assert_allclose(slopes, np.zeros(kernel.shape), atol=2e-2)
