"""Networks that hypothesis makes up: whatever it draws, the file computes the twin's integers."""

import numpy as np
import tf_keras
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import tfdq
import tflite_export
from tests.tflite_export.trained import digits
from tfdq.quantization import ConvexCombination

L = tf_keras.layers


def above_zero(seed):
    """Initial biases that let most of a layer's outputs through a ReLU."""
    return tf_keras.initializers.RandomUniform(0.0, 0.5, seed=seed)


def network(draw):
    """Draw a small network on 8x8 digits, and its bits; drawn alike it has the same weights."""
    tf_keras.utils.set_random_seed(0)
    image = x = L.Input((8, 8, 1))
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(
            st.sampled_from(
                ["conv", "depthwise", "separable", "residual", "pool", "concat", "norm"]
            )
        )
        channels = draw(st.integers(1, 9))
        size = draw(st.integers(1, 3))
        padding = draw(st.sampled_from(["same", "valid"]))
        stride = draw(st.integers(1, 2))
        if min(x.shape[1:3]) < size or (padding == "valid" and min(x.shape[1:3]) <= size):
            padding, size, stride = "same", 1, 1
        # Biases above 0 keep most layers alive: what is always 0 has no range, and is refused.
        bias = {"use_bias": draw(st.booleans()), "bias_initializer": above_zero(size)}
        if kind == "conv":
            x = L.Conv2D(channels, size, stride, padding, **bias)(x)
        elif kind == "depthwise":
            multiplier = draw(st.integers(1, 2))
            x = L.DepthwiseConv2D(size, stride, padding, depth_multiplier=multiplier, **bias)(x)
        elif kind == "separable":
            x = L.SeparableConv2D(channels, size, stride, padding, **bias)(x)
        elif kind == "residual":
            branch = L.Conv2D(x.shape[-1], 3, padding="same", **bias)(x)
            join = draw(st.sampled_from([L.Add, ConvexCombination]))
            x = join()([x, branch])
        elif kind == "pool":
            pool = draw(st.sampled_from([L.MaxPooling2D, L.AveragePooling2D]))
            x = pool(size, stride, padding)(x)
        elif kind == "concat":
            x = L.Concatenate()([x, L.Conv2D(channels, 1, activation="relu", **bias)(x)])
        if draw(st.booleans()) or kind == "norm":
            x = L.BatchNormalization(
                gamma_initializer=tf_keras.initializers.RandomNormal(0.5, 0.7, seed=channels),
                beta_initializer=tf_keras.initializers.RandomNormal(0.3, 0.5, seed=size),
            )(x)
        if draw(st.booleans()):
            x = L.ReLU(6.0)(x)
    head = draw(st.sampled_from(["flatten", "average", "max"]))
    x = {
        "flatten": L.Flatten,
        "average": L.GlobalAveragePooling2D,
        "max": L.GlobalMaxPooling2D,
    }[head]()(x)
    if draw(st.booleans()):
        units = draw(st.integers(2, 12))
        x = L.Dense(units, activation="relu", bias_initializer=above_zero(units))(x)
    outputs = L.Dense(draw(st.integers(2, 5)))(x)
    bits = {
        "weight_bits": draw(st.integers(2, 8)),
        "activation_bits": draw(st.integers(1, 8)),
        "activation_range": draw(st.sampled_from(["relu6", "moving_average"])),
    }
    return tf_keras.Model(image, outputs), bits, draw(st.sampled_from(["int8", "int4"]))


def alive(model, images):
    """Whether every layer has an output that is not 0."""
    inner = tf_keras.Model(model.inputs, [layer.output for layer in model.layers])
    return all(np.any(values) for values in inner.predict_on_batch(images))


@settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.data())
def test_any_network_is_exact(data):
    model, bits, weights = network(data.draw)
    images = digits()[0]
    qat = tfdq.calibrate(tfdq.quantize_model(model, 0.0, **bits), images[:128])
    assume(alive(qat, images[:64]))
    exported = tflite_export.convert(
        qat, weights=weights, calibration=images[:64], min_agreement=0.0
    )
    twin = exported.twin().integers(images[:512]).numpy()
    np.testing.assert_array_equal(twin, exported.interpreter().integers(images[:512]))
    assert tflite_export.integer_only(exported.content)
    worst = exported.parity.worst_layer()
    assert worst is not None
    assert worst.largest <= 1
