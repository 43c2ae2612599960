"""Digits and a small trained network, shared by the robustness tests of a whole run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import tf_keras
from sklearn.datasets import load_digits


@dataclass(frozen=True)
class Digits:
    """Train and test parts of the 8x8 digits, pixels in [0, 1], shape (n, 8, 8, 1)."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def small_network(seed: int, width: int = 12) -> tf_keras.Model:
    """Build two conv-bn-relu blocks, a pool and dense logits, with seeded weights."""
    tf_keras.utils.set_random_seed(seed)
    layers = tf_keras.layers
    image = layers.Input((8, 8, 1))
    x = image
    for block in (1, 2):
        x = layers.Conv2D(width, 3, padding="same", use_bias=False, name=f"conv{block}")(x)
        x = layers.BatchNormalization(momentum=0.9, name=f"bn{block}")(x)
        x = layers.ReLU(max_value=6.0, name=f"relu{block}")(x)
    x = layers.MaxPooling2D(2, name="pool")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(10, name="logits")(x)
    return tf_keras.Model(image, x, name=f"small_{seed}")


def trained_network(data: Digits, seed: int, epochs: int = 12) -> tf_keras.Model:
    """Train `small_network` on the digits; a few seconds."""
    model = small_network(seed)
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf_keras.optimizers.Adam(3e-3), loss)
    model.fit(data.x_train, data.y_train, batch_size=64, epochs=epochs, verbose=0)
    return model


@pytest.fixture(scope="session")
def digits() -> Digits:
    images, labels = load_digits(return_X_y=True)
    x = (images / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order], labels[order].astype(np.int64)
    return Digits(x[:1200], y[:1200], x[1200:], y[1200:])


@pytest.fixture(scope="session")
def build_network() -> Callable[..., tf_keras.Model]:
    """Give `small_network`, to build untrained networks with."""
    return small_network


@pytest.fixture(scope="session")
def float_model(digits: Digits) -> tf_keras.Model:
    return trained_network(digits, seed=0)


@pytest.fixture(scope="session")
def other_float_model(digits: Digits) -> tf_keras.Model:
    return trained_network(digits, seed=1)


@pytest.fixture(scope="session")
def quantized(digits: Digits, float_model: tf_keras.Model) -> Callable[[int], tf_keras.Model]:
    """Give a trained quantization-aware model for a number of activation bits, made once."""
    import tfdq

    made: dict[int, tf_keras.Model] = {}

    def get(bits: int) -> tf_keras.Model:
        if bits not in made:
            model = tfdq.quantize_model(
                float_model, lipschitz_beta=0.0, activation_bits=bits, input_range=(0.0, 1.0)
            )
            loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            model.compile(tf_keras.optimizers.Adam(1e-3), loss)
            model.fit(digits.x_train, digits.y_train, batch_size=64, epochs=5, verbose=0)
            made[bits] = model
        return made[bits]

    return get
