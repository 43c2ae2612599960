"""Every topology trained at every bit width on real images, and what its file decides on others.

The float network is trained once; each bit width starts from it and is trained quantization-aware.
"""

import functools
from dataclasses import dataclass

import numpy as np

from tests.tflite_export.trained import digits

HELD_OUT = 1024
FIRST = 4096
FLOAT_EPOCHS = 3
BATCH = 64
LEARNT = 0.3
"""Accuracy from which on a network has learnt something: chance is 0.1."""
BITS = (1, 6, 5, 7, 3, 8, 4, 2)
"""In an order in which the diagonal of `tests.exhaustive.spread` meets few and many."""


@dataclass(frozen=True)
class Images:
    """Images of bytes in [0, 1], ``(n, size, size, 1)``, and labels; none is in both halves."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def _resized(images: np.ndarray, size: int) -> np.ndarray:
    """Bytes (n, 32 or 8, ., 1) in [0, 1] at another size, on the grid of bytes again."""
    given = images.shape[1]
    if size >= given:
        return images.repeat(size // given, axis=1).repeat(size // given, axis=2)
    factor = given // size
    means = images.reshape(-1, size, factor, size, factor, 1).mean(axis=(2, 4))
    return (np.rint(means * 255) / np.float32(255)).astype(np.float32)


@functools.cache
def images_of(size: int) -> Images:
    """Fashion-MNIST, padded to 32x32 and averaged down; digits where it is not installed."""
    from tfdq.data.idx import DEBIAN_FASHION_MNIST, find_idx, read_idx

    files = find_idx(DEBIAN_FASHION_MNIST)
    if files is None:
        x, y = digits()
        x = (np.rint(_resized(x, size) * 255) / np.float32(255)).astype(np.float32)
        return Images(x[:-HELD_OUT], y[:-HELD_OUT], x[-HELD_OUT:], y[-HELD_OUT:])
    arrays = {key: read_idx(path) for key, path in files.items()}
    parts = []
    for part, count in (("train", FIRST), ("test", HELD_OUT)):
        x = np.pad(arrays[f"x_{part}"][:count], ((0, 0), (2, 2), (2, 2)))[..., None]
        parts += [_resized(x.astype(np.float32) / 255, size), arrays[f"y_{part}"][:count]]
    return Images(*parts)


def _compiled(model, name, rate):
    import tf_keras

    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=name != "softmax")
    model.compile(tf_keras.optimizers.Adam(rate), loss)
    return model


@functools.cache
def fitted_float(name: str):
    """A float network whose activations fill [0, 6], so that one bit can tell them apart."""
    import tf_keras

    from tests.tflite_export import topologies

    tf_keras.utils.set_random_seed(1)
    model = topologies.BUILDERS[name]()
    for layer in model.layers:
        if isinstance(layer, tf_keras.layers.BatchNormalization):
            layer.momentum = 0.9  # the statistics settle within the few steps there are
            layer.gamma.assign(2.0 * np.ones(layer.gamma.shape))
            layer.beta.assign(np.ones(layer.beta.shape))
    data = images_of(model.input_shape[1])
    _compiled(model, name, 3e-3).fit(
        data.x_train, data.y_train, BATCH, FLOAT_EPOCHS * FIRST // len(data.x_train), verbose=0
    )
    return model


def _schedule(bits: int) -> tuple[int, int, float, int | None]:
    """Weight bits, steps, first learning rate, bits of the first and last layer."""
    if bits == 1:  # with ternary weights as well, a deep network needs thousands of steps
        return 4, 160, 1e-2, 8
    if bits == 2:
        return 2, 200, 1e-2, 8
    return bits, 40, 3e-3 if bits == 3 else 1e-3, None


def fitted(name: str, bits: int):
    """The network with activations of ``bits`` bits, trained quantization-aware."""
    import tf_keras

    import tfdq

    model = fitted_float(name)
    data = images_of(model.input_shape[1])
    weight_bits, steps, rate, ends = _schedule(bits)
    qat = tfdq.quantize_model(
        model,
        0.0,
        weight_bits=weight_bits,
        activation_bits=bits,
        first_last_bits=ends,
        # Of one bit's two levels, the largest value observed is so high that nothing is learnt.
        activation_range="relu6" if bits == 1 else "moving_average",
        input_range=(0.0, 1.0),
    )
    chosen = np.random.default_rng(bits).permutation(BATCH * steps) % len(data.x_train)
    falling = tf_keras.optimizers.schedules.PolynomialDecay(rate, steps, rate / 100)
    _compiled(qat, name, falling).fit(data.x_train[chosen], data.y_train[chosen], BATCH, verbose=0)
    return qat


def check(name: str, bits: int) -> None:
    """The file computes the twin's integers and decides as the trained network, on new images."""
    import tflite_export

    qat = fitted(name, bits)
    data = images_of(qat.input_shape[1])
    exported = tflite_export.convert(qat, calibration=data.x_train[:128])
    runtime = exported.interpreter().integers(data.x_test)
    twin = exported.twin()
    batches = [data.x_test[i : i + 256] for i in range(0, HELD_OUT, 256)]
    np.testing.assert_array_equal(
        np.concatenate([twin.integers(batch).numpy() for batch in batches]), runtime
    )
    trained = np.concatenate([qat(batch, training=False).numpy() for batch in batches])
    agreement = (trained.argmax(-1) == runtime.argmax(-1)).mean()
    assert agreement >= (0.999 if bits == 8 else 0.995), agreement
    assert tflite_export.integer_only(exported.content)
    accuracy = (trained.argmax(-1) == data.y_test).mean()
    assert accuracy > LEARNT, accuracy
