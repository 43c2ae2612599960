"""BatchNorm statistics of a tf_keras model estimated anew: what moves, and to what."""

from __future__ import annotations

import numpy as np
import pytest
import tf_keras

import tfdq

L = tf_keras.layers
IMAGES = np.random.default_rng(0).random((22, 6)).astype(np.float32)


def test_statistics_are_those_of_all_images() -> None:
    image = L.Input((6,))
    x = L.BatchNormalization(name="norm")(L.Dense(5, use_bias=False, name="first")(image))
    x = L.Dropout(0.5)(L.ReLU()(x))
    x = L.BatchNormalization(name="frozen", trainable=False)(L.Dense(4, name="second")(x))
    x = L.BatchNormalization(name="quiet")(L.Dense(4, name="third")(x), training=False)
    model = tfdq.quantize_model(tf_keras.Model(image, L.Dense(3)(x)), input_range=(0.0, 1.0))
    tfdq.calibrate(model, IMAGES)
    first = model.get_layer("quant_first").layer
    still = [model.get_layer(f"quant_{name}").layer.batch_norm for name in ("second", "third")]
    before = [norm.get_weights() for norm in still]
    kernel = first.kernel.numpy()
    steps = np.abs(kernel).max(0) / 127
    rounded = np.rint(IMAGES * 255) / 255 @ (np.rint(kernel / steps) * steps)
    assert tfdq.calibrate(model, IMAGES, batch_size=8, batch_norm=True) is model
    norm = first.batch_norm
    np.testing.assert_allclose(norm.moving_mean.numpy(), rounded.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(norm.moving_variance.numpy(), rounded.var(0), rtol=1e-4)
    assert norm.momentum == 0.9
    np.testing.assert_array_equal(first.kernel.numpy(), kernel)
    for old, norm in zip(before, still, strict=True):
        np.testing.assert_array_equal(old, norm.get_weights())
    # Outside of the estimate nothing is normalized by its batch.
    alone = [model(IMAGES[i : i + 1], training=False).numpy() for i in range(4)]
    np.testing.assert_allclose(model(IMAGES[:4]).numpy(), np.concatenate(alone), atol=1e-5)


def test_there_must_be_something_to_estimate() -> None:
    image = L.Input((6,))
    x = L.BatchNormalization(trainable=False)(L.Dense(4)(image))
    model = tfdq.quantize_model(tf_keras.Model(image, x))
    with pytest.raises(ValueError, match="no BatchNormalization that follows training"):
        tfdq.calibrate(model, IMAGES, batch_norm=True)
