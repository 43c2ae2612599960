"""Every model quantizes, and every weight of the quantized model is reached by training."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfdq
import tflite_export
from tfdq import models

BUILDERS = {
    "small_cnn": lambda: models.small_cnn(),
    "resnet20": lambda: models.resnet20((8, 8, 3), width=4),
    "wide_resnet convex": lambda: models.wide_resnet(10, 1, (8, 8, 3), residual="convex"),
    "vgg16": lambda: models.vgg16(hidden=(16,), dropout=0.1),
    "mobilenet_v2": lambda: models.mobilenet_v2((8, 8, 3), alpha=0.35),
}


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS.keys())
def test_quantizes_and_trains(build):
    model = tfdq.quantize_model(build(), lipschitz_beta=1e-3, activation_bits=4)
    rng = np.random.default_rng(0)
    x = rng.random((8, *model.input_shape[1:]), np.float32)
    y = rng.integers(0, 10, 8)
    with tf.GradientTape() as tape:
        logits = model(x, training=True)
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits))
        loss += tf.add_n(model.losses)
    gradients = tape.gradient(loss, model.trainable_weights)
    for weight, gradient in zip(model.trainable_weights, gradients, strict=True):
        assert gradient is not None, weight.name
        assert np.isfinite(gradient).all(), weight.name
        if "kernel" in weight.name:
            assert np.any(gradient), weight.name


def three_branches():
    layers = tf_keras.layers
    image = layers.Input((8, 8, 3))
    branches = [
        layers.Conv2D(4, size, padding="same", activation="relu")(image) for size in (1, 2, 3)
    ]
    x = layers.Flatten()(tfdq.ConvexCombination()(branches))
    return tf_keras.Model(image, layers.Dense(10)(x))


@pytest.mark.parametrize("name", ["wide_resnet convex", "mobilenet_v2"])
def test_exports(name):
    model = tfdq.quantize_model(BUILDERS[name](), activation_bits=4)
    rng = np.random.default_rng(0)
    # Several batches: the observed ranges are then no multiples of one pooled pixel, whose means
    # would be ties of rounding.
    for _ in range(3):
        images = rng.random((32, *model.input_shape[1:]), np.float32)
        model(images, training=True)
    # Raises unless the file's integers are those of the trained model.
    exported = tflite_export.convert(model, calibration=images)
    assert tflite_export.integer_only(exported.content)


@pytest.mark.parametrize(
    "build", [*BUILDERS.values(), three_branches], ids=[*BUILDERS, "three branches"]
)
def test_exports_to_the_integers_of_its_twin(build):
    """No more than a step from the model anywhere: sums of three branches are rounded twice."""
    model = tfdq.quantize_model(build(), activation_bits=4)
    images = np.random.default_rng(0).random((32, *model.input_shape[1:]), np.float32)
    model(images, training=True)
    exported = tflite_export.convert(model, calibration=images, min_agreement=0.0)
    assert tflite_export.integer_only(exported.content)
    twin = exported.twin().integers(images).numpy()
    np.testing.assert_array_equal(twin, exported.interpreter().integers(images))
    worst = exported.parity.worst_layer()
    assert worst is not None
    assert worst.largest <= 1


def test_convex_residuals_do_not_expand():
    """Each block's output is no larger than the larger of its branches, whatever the weights."""
    model = models.wide_resnet(16, 1, (8, 8, 3), residual="convex")
    convex = [layer for layer in model.layers if layer.name.endswith("_convex")]
    assert len(convex) == 6
    rng = np.random.default_rng(0)
    for layer in convex:
        layer.set_weights([rng.normal(0, 2, w.shape) for w in layer.get_weights()])
        branches = [rng.normal(size=(2, 4, 4, 3)).astype(np.float32) for _ in range(2)]
        a = layer.coefficients()
        assert np.all(np.asarray(a) >= 0)
        assert float(np.sum(a)) == pytest.approx(1, abs=1e-6)
        np.testing.assert_allclose(
            layer(branches), a[0] * branches[0] + a[1] * branches[1], rtol=1e-5, atol=1e-6
        )
