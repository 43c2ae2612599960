"""Layers and operations left in float compute what they did, with all arguments of their calls."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfdq
from tests.quantization.kept import randomize

L = tf_keras.layers
IMAGES = np.random.default_rng(0).normal(size=(3, 6, 6, 4)).astype(np.float32)
FACTOR = 1.5


def relu(x: tf.Tensor) -> tf.Tensor:
    """Compute something else than Keras' function of that name."""
    return tf.nn.relu(x) * 1.25


def sequence(x: Any) -> Any:
    return tf.reshape(x, [-1, 36, 4])


def with_state(x: Any) -> Any:
    steps = sequence(x)
    return L.LSTM(4)(steps, initial_state=[steps[:, 0], steps[:, 1]])


def shared(x: Any) -> Any:
    layer = L.Dense(4)
    return layer(layer(x))


CALLS: dict[str, Callable[[Any], Any]] = {
    "leaky_relu": lambda x: tf.nn.leaky_relu(x, 0.3),
    "l2_normalize": lambda x: tf.nn.l2_normalize(x, -1),
    "softmax": lambda x: tf.nn.softmax(x, 1),
    "reduce_mean": lambda x: tf.reduce_mean(x, [1, 2]),
    "x * 2": lambda x: x * 2.0,
    "2 - x": lambda x: 2.0 - x,
    "a + b": lambda x: x + L.Conv2D(4, 1)(x),
    "x * x": lambda x: x * x,
    "slice": lambda x: x[:, 1:-1, ::2, :2],
    "pad": lambda x: tf.pad(x, [[0, 0], [1, 2], [0, 1], [0, 0]], constant_values=3.0),
    "concat": lambda x: tf.concat([x, x * 2.0, x], axis=1),
    "stack": lambda x: tf.stack([x, x], 1),
    "where": lambda x: tf.where(x > 0, x, x * 0.5),
    "matmul": lambda x: tf.matmul(x, x, transpose_b=True),
    "cast": lambda x: tf.cast(tf.cast(x, tf.int32), tf.float32),
    "Attention": lambda x: L.Attention()([sequence(x), sequence(x * 2.0)], use_causal_mask=True),
    "MultiHeadAttention": lambda x: L.MultiHeadAttention(2, 3)(
        sequence(x), value=sequence(x * 2.0), use_causal_mask=True
    ),
    "Lambda": lambda x: L.Lambda(lambda v, k: v * k * FACTOR, arguments={"k": 3.0})(x),
    "Softmax with a mask": lambda x: L.Softmax()(x, mask=x > 0),
    "BatchNormalization, training": lambda x: L.BatchNormalization()(x, training=True),
    "LSTM with a state": with_state,
    "Bidirectional": lambda x: L.Bidirectional(L.LSTM(3, return_sequences=True))(sequence(x)),
    "an activation of your own": lambda x: L.Conv2D(4, 1, activation=relu)(x),
    "one inside a wrapper": lambda x: L.TimeDistributed(L.Dense(3, activation=relu))(x),
    "adapted Normalization": lambda x: adapted()(x),
    "shared": shared,
}


def adapted() -> L.Normalization:
    layer = L.Normalization()
    layer.adapt(IMAGES * 3 + 1)
    return layer


@pytest.mark.parametrize("case", CALLS)
def test_computes_what_the_float_model_does(case: str, tmp_path: Path) -> None:
    image = L.Input((6, 6, 4))
    model = tf_keras.Model(image, CALLS[case](image))
    if "Normalization" not in case:
        randomize(model)
    qat = tfdq.quantize_model(model, skip=[layer.name for layer in model.layers[1:]])
    np.testing.assert_array_equal(qat(IMAGES), model(IMAGES))
    assert len(qat.weights) == len(model.weights)
    qat.save(tmp_path / "model.keras")
    loaded = tf_keras.models.load_model(
        tmp_path / "model.keras", safe_mode=False, custom_objects={"relu": relu}
    )
    np.testing.assert_array_equal(loaded(IMAGES), model(IMAGES))


def test_an_operation_between_quantized_layers_keeps_its_arguments() -> None:
    """The remedy that the error message names, in the middle of a network."""
    image = L.Input((6, 6, 4))
    x = tf.nn.leaky_relu(L.Conv2D(4, 3, name="before")(image), 0.3)
    model = tf_keras.Model(image, L.Conv2D(4, 3, name="after")(x))
    with pytest.raises(ValueError, match=r"'tf.nn.leaky_relu\w*'.*not a layer") as error:
        tfdq.quantize_model(model)
    name = str(error.value).split("'")[1]
    qat = tfdq.calibrate(tfdq.quantize_model(model, 0.0, skip=[name]), IMAGES)
    expected = model(IMAGES).numpy()
    assert np.abs(qat(IMAGES) - expected).max() < 0.03 * np.abs(expected).max()


def test_losses_flags_and_one_set_of_weights_are_kept() -> None:
    image = L.Input((6, 6, 4))
    both = L.Conv2D(4, 1, name="both", kernel_regularizer="l2")
    x = L.ReLU(activity_regularizer=tf_keras.regularizers.L2(0.1), name="active")(both(both(image)))
    frozen = L.Dense(3, name="frozen")
    wrapped = L.TimeDistributed(frozen, name="wrapped")
    model = randomize(tf_keras.Model(image, wrapped(x)))
    frozen.trainable = False
    names = ["both", "active", "wrapped"]
    qat = tfdq.quantize_model(model, skip=names)
    np.testing.assert_array_equal(qat(IMAGES), model(IMAGES))
    np.testing.assert_allclose(sum(qat.losses), sum(model.losses), rtol=1e-6)
    assert len(model.losses) == len(qat.losses) == 2
    sizes = [[w.shape for w in m.trainable_weights] for m in (qat, model)]
    assert sizes[0] == sizes[1]


def test_a_float_result_that_is_also_an_output_is_not_rounded() -> None:
    image = L.Input((6, 6, 4))
    x = L.LeakyReLU(name="leaky")(image)
    model = tf_keras.Model(image, [x, L.Conv2D(2, 1, name="conv")(x)])
    qat = tfdq.quantize_model(model, 0.0, skip=["leaky"])
    tfdq.calibrate(qat, IMAGES)
    np.testing.assert_array_equal(qat(IMAGES)[0], model(IMAGES)[0])
