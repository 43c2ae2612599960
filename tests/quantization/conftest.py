"""Digits, and one small float model trained on them."""

import numpy as np
import pytest
import tf_keras
from sklearn.datasets import load_digits

from tests.quantization.networks import every_layer


@pytest.fixture(scope="session")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Return 1,797 images (n, 8, 8, 1) in [0, 1] and their labels."""
    bunch = load_digits()
    return (bunch.images[..., None] / 16.0).astype(np.float32), bunch.target


@pytest.fixture(scope="session")
def float_model(digits: tuple[np.ndarray, np.ndarray]) -> tf_keras.Model:
    """Return ``every_layer()`` trained for two epochs."""
    tf_keras.utils.set_random_seed(1)
    model = every_layer()
    model.compile(tf_keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy", ["accuracy"])
    model.fit(*digits, epochs=2, batch_size=64, verbose=0)
    return model


@pytest.fixture(scope="session")
def trained_qat(
    float_model: tf_keras.Model, digits: tuple[np.ndarray, np.ndarray]
) -> tf_keras.Model:
    """Return the 4-bit DQ form of ``float_model``, trained one epoch; do not change it."""
    import tfdq

    qat = tfdq.quantize_model(float_model, 2e-3, activation_bits=4)
    qat.compile(tf_keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", ["accuracy"])
    qat.fit(*digits, epochs=1, batch_size=64, verbose=0)
    return qat
