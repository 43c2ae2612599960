"""The constant of every layer against the explicit Jacobian of the layer itself."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tests.needs import require
from tfdq.certificates.layer_maps import (
    activation_constant,
    lipschitz_constant,
)
from tfdq.certificates.norms import conv_norm, kernel_norm, layer_spectrum
from tflite_export.ops.windows import average_pool_axis, max_pool_axis

layers = tf_keras.layers


def jacobian(layer: tf_keras.layers.Layer, shape: tuple[int, ...]) -> np.ndarray:
    """Write out an affine layer by applying it to a basis of its inputs."""
    size = int(np.prod(shape))
    basis = np.eye(size, dtype=np.float32).reshape(size, *shape)
    origin = np.asarray(layer(np.zeros((1, *shape), np.float32), training=False))
    images = np.asarray(layer(basis, training=False)) - origin
    return images.reshape(size, -1).T.astype(np.float64)


def built(layer: tf_keras.layers.Layer, shape: tuple[int, ...]) -> tf_keras.layers.Layer:
    """Build a layer in a model, so that it knows its input's size."""
    inputs = tf_keras.Input(shape)
    tf_keras.Model(inputs, layer(inputs))
    return layer


KERNEL_LAYERS = [
    lambda: layers.Conv2D(4, 3, padding="same"),
    lambda: layers.Conv2D(5, 3, strides=2, padding="same"),
    lambda: layers.Conv2D(5, (2, 3), strides=(2, 1), padding="valid"),
    lambda: layers.Conv2D(4, 3, padding="same", dilation_rate=2),
    lambda: layers.Conv2D(2, 1),
    lambda: layers.DepthwiseConv2D(3, padding="same"),
    lambda: layers.DepthwiseConv2D(3, strides=2, padding="same", depth_multiplier=2),
]


@pytest.mark.parametrize("make", KERNEL_LAYERS)
def test_kernel_layers(make) -> None:
    layer = built(make(), (7, 6, 3))
    exact = np.linalg.svd(jacobian(layer, (7, 6, 3)), compute_uv=False)
    norm = conv_norm(layer)
    assert norm.sigma == pytest.approx(exact[0], rel=1e-5)
    assert norm.upper >= norm.sigma
    assert norm.upper == pytest.approx(exact[0], rel=1e-5)
    spectrum = layer_spectrum(layer)
    np.testing.assert_allclose(spectrum[: len(exact)], exact, atol=1e-5)


def test_dense_layer_and_its_two_norms_are_one() -> None:
    layer = built(layers.Dense(5, activation="relu"), (12,))
    exact = np.linalg.svd(np.asarray(layer.kernel, np.float64), compute_uv=False)[0]
    assert conv_norm(layer).sigma == pytest.approx(exact, rel=1e-8)
    assert kernel_norm(layer) == pytest.approx(exact, rel=1e-8)


def test_reshaped_norm_is_not_the_convolutions() -> None:
    """The example of the paper's gap: an orthogonal reshaped kernel, a convolution far above 1."""
    layer = built(layers.Conv2D(16, 3, padding="same", kernel_initializer="orthogonal"), (8, 8, 16))
    assert kernel_norm(layer) == pytest.approx(1.0, abs=1e-5)
    assert 1.3 < conv_norm(layer).sigma <= 3.0


def test_depthwise_kernel_norm_is_per_channel() -> None:
    layer = built(layers.DepthwiseConv2D(3, depth_multiplier=2), (5, 5, 3))
    kernel = np.asarray(layer.depthwise_kernel, np.float64)
    expected = max(np.linalg.norm(kernel[:, :, c].reshape(9, 2), 2) for c in range(3))
    assert kernel_norm(layer) == pytest.approx(expected, rel=1e-9)


AFFINE_LAYERS = [
    (lambda: layers.BatchNormalization(), (4, 4, 3)),
    (lambda: layers.AveragePooling2D(2), (6, 6, 2)),
    (lambda: layers.AveragePooling2D(3, strides=2, padding="same"), (7, 6, 2)),
    (lambda: layers.AveragePooling2D((3, 2), strides=1, padding="same"), (5, 7, 1)),
    (lambda: layers.GlobalAveragePooling2D(), (4, 5, 2)),
    (lambda: layers.Rescaling(1 / 0.3), (3, 3, 2)),
    (lambda: layers.ZeroPadding2D(2), (3, 3, 2)),
    (lambda: layers.Flatten(), (3, 3, 2)),
    (lambda: layers.UpSampling2D(2), (3, 3, 2)),
    (lambda: layers.LeakyReLU(1.0), (3, 3, 2)),
]


@pytest.mark.parametrize(("make", "shape"), AFFINE_LAYERS)
def test_affine_layers(make, shape) -> None:
    layer = built(make(), shape)
    rng = np.random.default_rng(1)
    if isinstance(layer, layers.BatchNormalization):
        channels = shape[-1]
        layer.set_weights(list(rng.uniform(0.2, 3.0, (4, channels)) * [[-1], [1], [1], [1]]))
    exact = np.linalg.svd(jacobian(layer, shape), compute_uv=False)[0]
    constant = lipschitz_constant(layer, shape)
    assert constant == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(("pool", "stride"), [(2, 2), (3, 2), (3, 1), (2, 3), (4, 3)])
def test_max_pooling_is_attained_and_never_exceeded(padding: str, pool: int, stride: int) -> None:
    shape = (9, 8, 1)
    layer = built(layers.MaxPooling2D(pool, stride, padding), shape)
    constant = lipschitz_constant(layer, shape)
    rng = np.random.default_rng(0)
    first = rng.standard_normal((400, *shape)).astype(np.float32)
    second = first + 0.1 * rng.standard_normal(first.shape).astype(np.float32)
    change = np.linalg.norm((layer(first) - layer(second)).numpy().reshape(400, -1), axis=1)
    moved = np.linalg.norm((first - second).reshape(400, -1), axis=1)
    assert np.all(change <= constant * moved * (1 + 1e-5))
    # One bright pixel is the maximum of every window that holds it; the best place attains it.
    bright = np.eye(72, dtype=np.float32).reshape(72, *shape)
    gains = np.linalg.norm((layer(2 * bright) - layer(bright)).numpy().reshape(72, -1), axis=1)
    assert gains.max() == pytest.approx(constant, rel=1e-6)


def test_pool_axes_of_disjoint_windows() -> None:
    assert max_pool_axis(8, 2, 2, "valid") == 1.0
    assert average_pool_axis(8, 2, 2, "valid") == pytest.approx(2**-0.5, rel=1e-9)


@pytest.mark.parametrize(
    "name", ["relu", "relu6", "tanh", "softplus", "elu", "sigmoid", "selu", "swish", "gelu"]
)
def test_activation_constants_are_the_steepest_slope(name: str) -> None:
    points = tf.constant(np.linspace(-8, 8, 400_001))
    with tf.GradientTape() as tape:
        tape.watch(points)
        values = tf_keras.activations.get(name)(points)
    steepest = float(tf.reduce_max(tf.abs(tape.gradient(values, points))))
    assert steepest <= activation_constant(name) * (1 + 1e-9)
    assert activation_constant(name) <= steepest * 1.01


def test_softmax_constant() -> None:
    logits = np.random.default_rng(0).standard_normal((2000, 3)) * 3
    exponentials = np.exp(logits)
    p = exponentials / exponentials.sum(axis=1, keepdims=True)
    jacobians = np.einsum("ni,ij->nij", p, np.eye(3)) - np.einsum("ni,nj->nij", p, p)
    steepest = np.linalg.norm(jacobians, 2, axis=(1, 2)).max()
    assert 0.45 < steepest <= activation_constant("softmax")


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (layers.LayerNormalization(), (4,), "no known Lipschitz constant"),
        (layers.ReLU(threshold=1.0), (4,), "jump"),
        (layers.Activation("exponential"), (4,), "exponential"),
        (layers.AveragePooling2D(2), (None, None, 3), "not fixed"),
        (layers.UpSampling2D(2, interpolation="bilinear"), (4, 4, 3), "nearest"),
    ],
)
def test_layers_without_a_constant_are_refused(layer, shape, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lipschitz_constant(built(layer, shape), shape)


def test_layers_without_a_kernel_or_a_size_are_refused() -> None:
    with pytest.raises(ValueError, match="no kernel"):
        conv_norm(layers.Flatten())
    with pytest.raises(ValueError, match="not built"):
        conv_norm(layers.Conv2D(3, 3))
    open_size = built(layers.Conv2D(3, 3), (None, None, 2))
    with pytest.raises(ValueError, match="input_shape"):
        conv_norm(open_size)
    assert conv_norm(open_size, input_shape=(6, 6, 2)).sigma > 0
    with pytest.raises(ValueError, match="kernel must be"):
        conv_norm(open_size, kernel="integer", input_shape=(6, 6, 2))


def test_agrees_with_deel_lip() -> None:
    """The same norms, from the library whose subject they are."""
    peer = require("deel.lip.compute_layer_sv", "peers")
    for make, shape in (
        (lambda: layers.Conv2D(4, 3, padding="same"), (6, 6, 3)),
        (lambda: layers.Conv2D(5, 3, strides=2, padding="valid"), (6, 6, 3)),
        (lambda: layers.Dense(7), (11,)),
    ):
        layer = built(make(), shape)
        _, theirs = peer.compute_layer_sv(layer)
        assert conv_norm(layer).sigma == pytest.approx(theirs, rel=1e-5)
