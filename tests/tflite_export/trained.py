"""Digits, and models of `topologies` trained on them; each is made once in a session."""

import functools

import numpy as np
from sklearn.datasets import load_digits


@functools.cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's 1,797 handwritten digits, 8x8x1, in [0, 1]."""
    data = load_digits()
    return (data.images / 16.0).astype(np.float32)[..., None], data.target


def enlarged(images: np.ndarray, size: int) -> np.ndarray:
    factor = size // images.shape[1]
    return images.repeat(factor, axis=1).repeat(factor, axis=2)


@functools.cache
def trained_float(name: str):
    """A float model of `topologies`, trained a little on digits."""
    import tf_keras

    from tests.tflite_export import topologies

    tf_keras.utils.set_random_seed(1)
    model = topologies.BUILDERS[name]()
    for layer in model.layers:
        if isinstance(layer, tf_keras.layers.BatchNormalization):
            layer.momentum = 0.9  # the statistics settle within the few steps there are
    images, labels = digits()
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=name != "softmax")
    model.compile(tf_keras.optimizers.Adam(3e-3), loss)
    model.fit(enlarged(images, model.input_shape[1])[:1400], labels[:1400], 64, 6, verbose=0)
    return model


def quantized(name: str, weight_bits: int, activation_bits: int, **options):
    """A quantization-aware model made from `trained_float`, its ranges set on digits."""
    import tfdq

    model = trained_float(name)
    images = enlarged(digits()[0], model.input_shape[1])
    qat = tfdq.quantize_model(
        model, 0.0, weight_bits=weight_bits, activation_bits=activation_bits, **options
    )
    return tfdq.calibrate(qat, images[:128])
