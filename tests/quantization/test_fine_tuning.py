"""A trained network, fine-tuned with the default call, is a file that classifies as well."""

import numpy as np
import pytest
import tf_keras
from sklearn.datasets import load_digits

import tfdq
from tflite_export import convert
from tflite_export.runtime.interpreter import Interpreter

L = tf_keras.layers
Images = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def digits() -> tuple[Images, Images]:
    bunch = load_digits()
    images = (bunch.images[..., None] / 16.0).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(images))
    rest, held = order[:1200], order[1200:]
    return (images[rest], bunch.target[rest]), (images[held], bunch.target[held])


@pytest.fixture(scope="module")
def ds_cnn(digits: tuple[Images, Images]) -> tf_keras.Model:
    """A stem and two pairs of depthwise and 1x1 convolutions, BatchNorm as Keras has it."""
    tf_keras.utils.set_random_seed(0)
    image = L.Input((8, 8, 1))
    x = L.Conv2D(16, 3, padding="same", use_bias=False)(image)
    x = L.ReLU()(L.BatchNormalization()(x))
    for filters, strides in ((24, 1), (32, 2)):
        x = L.DepthwiseConv2D(3, strides=strides, padding="same", use_bias=False)(x)
        x = L.ReLU()(L.BatchNormalization()(x))
        x = L.Conv2D(filters, 1, use_bias=False)(x)
        x = L.ReLU()(L.BatchNormalization()(x))
    model = tf_keras.Model(image, L.Dense(10)(L.GlobalAveragePooling2D()(x)))
    model.compile(
        tf_keras.optimizers.Adam(1e-2),
        tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(*digits[0], epochs=20, batch_size=64, verbose=0)
    return model


def test_one_epoch_of_the_default_call_keeps_the_accuracy(
    ds_cnn: tf_keras.Model, digits: tuple[Images, Images]
) -> None:
    train, (x, y) = digits
    found = {}
    for name, settings in (("penalty", {}), ("none", {"lipschitz_beta": 0.0})):
        tf_keras.utils.set_random_seed(0)
        qat = tfdq.quantize_model(ds_cnn, **settings)
        qat.compile(
            tf_keras.optimizers.Adam(1e-3),
            tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        before = float(sum(qat.losses)) if qat.losses else 0.0
        qat.fit(*train, epochs=1, verbose=0)
        assert not qat.losses or float(sum(qat.losses)) < before
        found[name] = np.mean(Interpreter(convert(qat, golden=0).content).predict(x).argmax(1) == y)
    assert found["none"] > 0.9
    assert found["penalty"] > found["none"] - 0.03
