"""The lean backward pass against TensorFlow's own through the same model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfdq
from tests.exhaustive import spread
from tfdq.models import small_cnn, wide_resnet
from tfdq.robustness import as_target, run_attack
from tfdq.robustness.attacks.losses import cross_entropy, margin
from tfdq.robustness.lean_gradients import LeanNetwork, lean_function


def mixed() -> tf_keras.Model:
    """Build a network with depthwise, strided and dense layers, with and without bias and ReLU."""
    layers = tf_keras.layers
    image = layers.Input((8, 8, 1))
    x = layers.Conv2D(6, 3, strides=2, padding="same")(image)
    x = layers.ReLU(6.0)(layers.BatchNormalization(scale=False)(x))
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, depth_multiplier=2)(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Conv2D(5, 2, dilation_rate=2)(x)
    x = layers.Dense(7)(layers.Flatten()(x))
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    return tf_keras.Model(image, layers.Dense(4)(x))


NETWORKS = {
    "small": small_cnn,
    "residual": lambda: wide_resnet(10, 1, input_shape=(8, 8, 1)),
    "mixed": mixed,
}


def network(name: str, seed: int = 0, **settings: Any) -> tuple[tf_keras.Model, np.ndarray]:
    """Build a quantized network whose BatchNorm statistics, biases and ranges are not trivial."""
    tf_keras.utils.set_random_seed(seed)
    generator = np.random.default_rng(seed)
    x = generator.random((24, 8, 8, 1), dtype=np.float32)
    x[:, :2] = 0.0  # pixels on the end of the range, and zeros behind them
    model = tfdq.quantize_model(NETWORKS[name](), 0.0, input_range=(0.0, 1.0), **settings)
    tfdq.calibrate(model, x)
    for layer in model._flatten_layers():
        if isinstance(layer, tf_keras.layers.BatchNormalization):
            layer.set_weights([w + 0.3 * generator.random(w.shape) for w in layer.get_weights()])
    return tfdq.calibrate(model, x), x


@pytest.mark.parametrize(("name", "bits"), spread([*NETWORKS], [1, 2, 4, 8], 2))
@pytest.mark.parametrize("activation_range", ["relu6", "moving_average"])
def test_values_and_gradients_are_the_models(name: str, bits: int, activation_range: str) -> None:
    model, x = network(name, activation_bits=bits, activation_range=activation_range)
    y = np.arange(len(x)) % model.output_shape[-1]
    target = as_target(model)
    assert isinstance(target._differentiated, LeanNetwork)
    logits, losses, gradients = target.loss_gradient(cross_entropy, x, y)
    np.testing.assert_array_equal(logits, target.logits(x))
    images, labels = tf.constant(x), tf.constant(y, tf.int32)
    with tf.GradientTape() as tape:
        tape.watch(images)
        expected_losses = cross_entropy(model(images, training=False), labels, None)
    expected = tape.gradient(expected_losses, images).numpy().reshape(len(x), -1)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5, atol=1e-5)
    found = gradients.reshape(len(x), -1)
    sizes = np.linalg.norm(expected, axis=1)
    assert sizes.max() > 0
    assert (np.linalg.norm(found - expected, axis=1) <= 1e-4 * sizes).all()


def test_further_training_is_seen() -> None:
    """The target is kept with the model; weights and ranges are read at each call."""
    model, x = network("small", activation_bits=4)
    y = np.zeros(len(x), int)
    target = as_target(model)
    before = target.loss_gradient(margin, x, y)
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf_keras.optimizers.SGD(0.5), loss)
    model.fit(x, y, epochs=2, verbose=0)
    after = target.loss_gradient(margin, x, y)
    np.testing.assert_allclose(after[0], model(x, training=False), rtol=1e-5, atol=1e-5)
    assert np.abs(after[2] - before[2]).max() > 1e-3


def test_what_has_nothing_to_gain_is_left_alone(float_model: tf_keras.Model) -> None:
    assert lean_function(float_model) is None
    assert lean_function(lambda x: x) is None


def test_the_attack_is_the_same(quantized: Any, digits: Any) -> None:
    """PGD through the lean and through the plain backward pass breaks the same images."""
    model, x, y = quantized(4), digits.x_test[:200], digits.y_test[:200]
    plain = as_target(lambda images: model(images, training=False), differentiable=True)
    lean, full = (run_attack("pgd", target, x, y, 0.1) for target in (model, plain))
    assert np.mean(lean.success != full.success) <= 0.01
    assert lean.success.mean() > 0.2
