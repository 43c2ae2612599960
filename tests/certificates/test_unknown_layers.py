"""What is only named like a known layer or activation has no Lipschitz constant."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tfdq.certificates.box_propagation import check_box_propagation
from tfdq.certificates.network import lipschitz_report
from tfdq.quantization.graph import read_graph

layers = tf_keras.layers
SHAPE = (4, 4, 4)


def relu(x: tf.Tensor) -> tf.Tensor:
    return 50.0 * tf.nn.relu(x)


class Steep(layers.Conv2D):
    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return 50.0 * super().call(inputs)


class Named(layers.Dense):
    """A subclass that only sets arguments computes what its base does."""

    def __init__(self, **kwargs) -> None:
        super().__init__(2, **kwargs)


class FusedReLU(layers.Layer):
    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return 50.0 * inputs


def model_of(layer, **call) -> tf_keras.Model:
    inputs = tf_keras.Input(SHAPE)
    return tf_keras.Model(inputs, layer(inputs, **call))


UNKNOWN = {
    "activation": (lambda: model_of(layers.Activation(relu)), "activation 'relu'"),
    "kernel": (lambda: model_of(layers.Conv2D(2, 1, activation=relu)), "activation 'relu'"),
    "subclass": (lambda: model_of(Steep(2, 1)), r"Steep\.call"),
    "name": (lambda: model_of(FusedReLU()), r"FusedReLU\.call"),
    "training": (
        lambda: model_of(layers.BatchNormalization(), training=True),
        "called with training=True",
    ),
    "dropout": (lambda: model_of(layers.Dropout(0.5), training=True), "called with training=True"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_namesake_is_refused_by_norms_and_by_boxes(name) -> None:
    make, message = UNKNOWN[name]
    model = make()
    with pytest.raises(ValueError, match=message):
        lipschitz_report(model)
    with pytest.raises(ValueError, match=message):
        check_box_propagation(read_graph(model))


def test_plain_subclasses_and_inference_calls_are_measured() -> None:
    model = model_of(layers.BatchNormalization(), training=False)
    model = tf_keras.Model(model.input, Named()(layers.ReLU()(layers.Flatten()(model.output))))
    assert np.isfinite(lipschitz_report(model).upper)


def gain(model: tf_keras.Model, count: int = 300) -> float:
    """The largest gain of a model between random pairs of inputs, and along each entry."""
    rng = np.random.default_rng(0)
    size = int(np.prod(SHAPE))
    steps = np.concatenate([rng.standard_normal((count, size)), np.eye(size)]).astype(np.float32)
    start = rng.standard_normal((1, size)).astype(np.float32)
    near = model(start.reshape(1, *SHAPE)).numpy()
    far = model((start + steps).reshape(-1, *SHAPE)).numpy()
    change = np.linalg.norm((far - near).reshape(len(steps), -1), axis=1)
    return float((change / np.linalg.norm(steps, axis=1)).max())


def test_batch_norms_over_another_axis_are_not_folded_into_the_channels() -> None:
    """Height and channels have one size: folding along the wrong one would pass unnoticed."""
    inputs = tf_keras.Input(SHAPE)
    conv = layers.Conv2D(4, 1, use_bias=False)
    norm = layers.BatchNormalization(axis=1)
    model = tf_keras.Model(inputs, norm(conv(inputs)))
    conv.set_weights([np.diag([9.0, 0.1, 0.1, 0.1])[None, None]])
    gamma = np.array([0.01, 5.0, 0.01, 0.01])
    norm.set_weights([gamma, np.zeros(4), np.zeros(4), np.ones(4)])
    measured = gain(model)
    assert measured > 40.0
    assert lipschitz_report(model).upper >= measured


def test_inverted_normalization_multiplies_by_the_deviation() -> None:
    layer = layers.Normalization(mean=np.zeros(4), variance=np.full(4, 100.0), invert=True)
    model = model_of(layer)
    assert gain(model) == pytest.approx(10.0, rel=1e-4)
    assert lipschitz_report(model).upper == pytest.approx(10.0, rel=1e-6)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (layers.LeakyReLU(alpha=-0.5), "falling slope"),
        (layers.UpSampling2D(2, interpolation="bicubic"), "negative weights"),
    ],
)
def test_layers_that_are_not_monotone_have_no_interval_rule(layer, message) -> None:
    with pytest.raises(ValueError, match=message):
        check_box_propagation(read_graph(model_of(layer)))


@pytest.mark.parametrize(
    "layer",
    [
        layers.MaxPooling2D(2, data_format="channels_first"),
        layers.GlobalAveragePooling2D(data_format="channels_first"),
    ],
)
def test_pooling_of_channels_first_is_refused(layer) -> None:
    with pytest.raises(ValueError, match="channels_first"):
        lipschitz_report(model_of(layer))
