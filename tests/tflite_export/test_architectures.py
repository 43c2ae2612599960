"""Networks that hypothesis makes up: whatever it draws, the file computes the twin's integers."""

import numpy as np
import tf_keras
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tfdq
import tflite_export
from tests.tflite_export.trained import digits
from tfdq.quantization import ConvexCombination

L = tf_keras.layers


@st.composite
def networks(draw):
    """A small network on 8x8 digits, and its bits."""
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
        bias = draw(st.booleans())
        if kind == "conv":
            x = L.Conv2D(channels, size, stride, padding, use_bias=bias)(x)
        elif kind == "depthwise":
            multiplier = draw(st.integers(1, 2))
            x = L.DepthwiseConv2D(size, stride, padding, depth_multiplier=multiplier)(x)
        elif kind == "separable":
            x = L.SeparableConv2D(channels, size, stride, padding, use_bias=bias)(x)
        elif kind == "residual":
            branch = L.Conv2D(x.shape[-1], 3, padding="same")(x)
            join = draw(st.sampled_from([L.Add, ConvexCombination]))
            x = join()([x, branch])
        elif kind == "pool":
            pool = draw(st.sampled_from([L.MaxPooling2D, L.AveragePooling2D]))
            x = pool(size, stride, padding)(x)
        elif kind == "concat":
            x = L.Concatenate()([x, L.Conv2D(channels, 1, activation="relu")(x)])
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
        x = L.Dense(draw(st.integers(2, 12)), activation="relu")(x)
    outputs = L.Dense(draw(st.integers(2, 5)))(x)
    bits = {
        "weight_bits": draw(st.integers(2, 8)),
        "activation_bits": draw(st.integers(1, 8)),
        "activation_range": draw(st.sampled_from(["relu6", "moving_average"])),
    }
    return tf_keras.Model(image, outputs), bits, draw(st.sampled_from(["int8", "int4"]))


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(networks())
def test_any_network_is_exact(drawn):
    model, bits, weights = drawn
    images = digits()[0]
    qat = tfdq.calibrate(tfdq.quantize_model(model, 0.0, **bits), images[:128])
    exported = tflite_export.convert(
        qat, weights=weights, calibration=images[:64], min_agreement=0.0
    )
    twin = exported.twin().integers(images[:512]).numpy()
    np.testing.assert_array_equal(twin, exported.interpreter().integers(images[:512]))
    assert tflite_export.integer_only(exported.content)
    worst = exported.parity.worst_layer()
    assert worst is not None
    assert worst.largest <= 1
