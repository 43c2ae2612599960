"""The integer twin: exact values, straight-through gradients, every way of making it."""

import numpy as np
import pytest
import tensorflow as tf

import tflite_export
from tests.tflite_export.graphs import Draw, grid
from tests.tflite_export.trained import digits, quantized
from tflite_export.ir.graph import Convolution, Elementwise, FullyConnected
from tflite_export.twin.integer_twin import IntegerTwin


def test_every_source_gives_the_same_twin(small_model, small_file):
    qat, exported, images, _ = small_model
    expected = exported.interpreter().integers(images)
    files = (exported.content, str(small_file), small_file)
    for source in (qat, exported, *files, exported.graph, exported.twin()):
        np.testing.assert_array_equal(IntegerTwin(source).integers(images).numpy(), expected)


def test_it_is_called_as_the_trained_model(small_model):
    qat, exported, images, labels = small_model
    twin = exported.twin()
    assert isinstance(twin, tf.keras.Model) or hasattr(twin, "predict")
    assert twin.input_shape == qat.input_shape
    assert twin.output_shape == qat.output_shape
    expected = exported.interpreter().predict(images)
    np.testing.assert_array_equal(twin(images).numpy(), expected)
    np.testing.assert_array_equal(twin(tf.constant(images), training=True).numpy(), expected)
    np.testing.assert_array_equal(twin.predict(images, batch_size=100, verbose=0), expected)
    accuracy = (twin(images).numpy().argmax(-1) == labels).mean()
    assert accuracy > 0.85


def test_tracing_does_not_change_an_integer(small_model):
    _, exported, images, _ = small_model
    twin = exported.twin()
    eager = twin.integers(images).numpy()
    traced = tf.function(twin.integers, input_signature=[tf.TensorSpec((None, 8, 8, 1))])
    np.testing.assert_array_equal(traced(images).numpy(), eager)
    np.testing.assert_array_equal(traced(images[:3]).numpy(), eager[:3])


def test_integer_inputs_are_taken_as_they_are(small_model):
    _, exported, images, _ = small_model
    model = exported.interpreter()
    grid = model.input_tensors[0]
    raw = np.clip(np.rint(images / grid.scale) + grid.zero_point, -128, 127).astype(np.int8)
    np.testing.assert_array_equal(exported.twin().integers(raw).numpy(), model.integers(raw))


def test_any_kernel_set_can_be_imitated(small_model):
    _, exported, images, _ = small_model
    for choice in ("builtin", "reference"):
        twin = exported.twin(kernels=choice)
        theirs = exported.interpreter(kernels=choice).integers(images)
        np.testing.assert_array_equal(twin.integers(images).numpy(), theirs)
    with pytest.raises(ValueError, match="xnnpack"):
        exported.twin(kernels="gpu")


def _gradient(graph, x):
    twin = IntegerTwin(graph)
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(
            twin(x) * tf.range(1.0, 1.0 + graph.tensors[graph.outputs[0]].shape[-1])
        )
    return tape.gradient(total, x).numpy()


@pytest.mark.parametrize("activation", ["NONE", "RELU", "RELU6"])
def test_dense_gradient_is_straight_through(activation):
    """Against the straight-through gradient in NumPy: W^T masked where the clamps act."""
    draw = Draw(5)
    source = draw.value("x", (-1, 30), 0.05, 3)
    options = FullyConnected(activation)
    graph = draw.weighted("FULLY_CONNECTED", source, (7, 30), 0, options, (-1, 7))
    rng = np.random.default_rng(0)
    x = rng.uniform(-7.5, 7.5, (64, 30)).astype(np.float32)
    inputs, weights, bias, output = graph.tensors
    steps = x * (np.float32(1) / inputs.scale)
    inside = (steps >= -128 - 3) & (steps <= 127 - 3)
    centred = np.clip(np.rint(steps), -128 - 3, 127 - 3)
    sums = centred @ weights.data.astype(np.float64).T + bias.data
    real = sums * float(inputs.scale) * float(weights.scale)
    low = -np.inf if activation == "NONE" else 0.0
    high = 6.0 if activation == "RELU6" else np.inf
    span = [(q - output.zero_point) * float(output.scale) for q in (-128, 127)]
    passing = (real > max(low, span[0] - 1e-9)) & (real <= min(high + 1e-9, span[1] + 1e-9))
    upstream = passing * np.arange(1.0, 8.0)
    real_weights = weights.data * float(weights.scale)
    expected = (upstream @ real_weights) * inside
    np.testing.assert_allclose(_gradient(graph, tf.constant(x)), expected, rtol=2e-4, atol=1e-4)


def test_addition_gradient_is_that_of_the_sum():
    draw = Draw(1)
    left = draw.value("a", (-1, 4), 0.1, 0)
    right = draw.value("b", (-1, 4), 0.03, 5)
    output = draw.value("y", (-1, 4), 0.2, 0)
    graph = draw.done("ADD", (left, right), output, Elementwise(), (left, right))
    twin = IntegerTwin(graph)
    a, b = tf.constant([[0.5, -1.0, 30.0, 1.0]]), tf.constant([[0.1, 0.2, 0.3, 90.0]])
    with tf.GradientTape() as tape:
        tape.watch([a, b])
        y = twin([a, b])
    ga, gb = tape.gradient(y, [a, b])
    # 30 is beyond a's largest value, 90 beyond b's: clamped, no gradient
    np.testing.assert_allclose(ga, [[1, 1, 0, 1]], rtol=1e-5)
    np.testing.assert_allclose(gb, [[1, 1, 1, 0]], rtol=1e-5)


@pytest.mark.parametrize(("bias", "passes"), [(0, 1.0), (-20, 0.0)])
def test_clamp_that_nothing_can_pass_stops_no_gradient(bias, passes):
    """A ReLU behind a change of grid cuts nothing: a black pixel, on its end, can get brighter."""
    draw = Draw(3)
    pixel, step = 1 / 255, 1 / 7
    source = draw.value("x", (-1, 2, 2, 1), pixel, -128)
    output = draw.value("y", (-1, 2, 2, 1), step, -128)
    weights = draw.constant("w", np.full((1, 1, 1, 1), 100, np.int8), grid(0.01), "int8")
    offset = draw.constant("b", np.full(1, 100 * bias, np.int32), grid(0.01 * pixel), "int32")
    options = Convolution("VALID", activation="RELU")
    graph = draw.done("DEPTHWISE_CONV_2D", (source, weights, offset), output, options)
    x = tf.constant([0.0, 0.25, 0.6, 1.0], shape=(1, 2, 2, 1))
    twin = IntegerTwin(graph)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = twin(x)
    slopes = tape.gradient(y, x).numpy().ravel()
    np.testing.assert_allclose(slopes, [passes, 1.0, 1.0, 1.0], rtol=1e-5)
    levels = np.rint(np.maximum(x.numpy() * 255 + bias, 0) / 255 * 7) - 128
    np.testing.assert_array_equal(twin.integers(x).numpy(), levels)


@pytest.mark.parametrize("name", ["small", "convex", "concat", "softmax"])
def test_gradient_follows_the_trained_models(name):
    """Both are straight-through; they differ only where a tie or a clamp's edge falls otherwise."""
    qat = quantized(name, 4, 4)
    images, _ = digits()
    size = qat.input_shape[1]
    x = tf.constant(images[:64].repeat(size // 8, 1).repeat(size // 8, 2) * 0.9 + 0.05)
    exported = tflite_export.convert(qat, calibration=x)

    def gradient(model):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = model(x, training=False)
            loss = tf.reduce_sum(value * tf.constant(np.linspace(-1, 1, 10), tf.float32))
        return tape.gradient(loss, x).numpy().reshape(64, -1)

    ours, theirs = gradient(exported.twin()), gradient(qat)
    cosine = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    assert np.median(cosine) > 0.99


def test_unequal_strides_of_a_depthwise_convolution():
    draw = Draw(2)
    source = draw.value("x", (-1, 9, 8, 5))
    options = Convolution("SAME", stride_w=1, stride_h=2)
    shape, out = (1, 3, 3, 5), (-1, 5, 8, 5)
    graph = draw.weighted("DEPTHWISE_CONV_2D", source, shape, 3, options, out)
    from tests.tflite_export.graphs import feeds
    from tflite_export.runtime.reference import run

    values = feeds(graph, 4)
    np.testing.assert_array_equal(
        IntegerTwin(graph).integers(values[0]).numpy(), run(graph, values)[graph.outputs[0]]
    )


def test_wrong_inputs_are_named(small_model):
    twin = small_model[1].twin()
    with pytest.raises(ValueError, match="expected"):
        twin.integers(np.zeros((8, 8, 1), np.float32))
    with pytest.raises(TypeError, match="tf_keras model"):
        IntegerTwin(3)
