"""The structure and the arithmetic of quantize_model's result."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfdq
from tests.quantization.networks import every_layer
from tfdq.quantization import (
    FixedRangeQuantizer,
    FusedConv2D,
    InputQuantizer,
    ObservedRangeQuantizer,
    QuantizeWrapper,
)

L = tf_keras.layers
Images = tuple[np.ndarray, np.ndarray]


def test_layers_are_fused_and_each_quantized_once(float_model: tf_keras.Model) -> None:
    qat = tfdq.quantize_model(float_model, activation_bits=4, activation_range="relu6")
    names = [layer.name for layer in qat.layers]
    assert names[0] == "image"
    assert set(names[1:]) == {
        "quant_image",
        *_BEHIND_A_RELU,
        *_LINEAR,
        *_PASSING,
        "quant_softmax",
    }
    relu = [name for name in names if qat.get_layer(name).name in _BEHIND_A_RELU]
    for name in relu:
        quantizer = qat.get_layer(name).output_quantizer
        assert isinstance(quantizer, FixedRangeQuantizer)
        assert (quantizer.bits, quantizer.low, quantizer.high) == (4, 0.0, 6.0)
    linear = [name for name in names if name in _LINEAR]
    assert all(
        isinstance(qat.get_layer(name).output_quantizer, ObservedRangeQuantizer)
        and qat.get_layer(name).output_quantizer.bits == 8
        for name in linear
    )
    for name in _PASSING:
        assert qat.get_layer(name).output_grid() is None
    observed = tfdq.quantize_model(float_model, activation_bits=4)
    for name in _BEHIND_A_RELU:
        quantizer = observed.get_layer(name).output_quantizer
        assert isinstance(quantizer, ObservedRangeQuantizer)
        assert (quantizer.bits, quantizer.nonnegative) == (4, True)
    # Branches with ranges of their own have to meet on one.
    assert isinstance(observed.get_layer("quant_concat").output_quantizer, ObservedRangeQuantizer)


_BEHIND_A_RELU = {
    f"quant_{name}"
    for name in ("stem", "inline", "add", "separable", "depthwise", "pre_norm", "hidden")
}
_PASSING = {f"quant_{name}" for name in ("concat", "pad", "max", "dropout", "flatten", "reshape")}
_LINEAR = {
    f"quant_{name}"
    for name in (
        "rescale",
        "linear",
        "separable_depthwise",
        "branch",
        "combine",
        "average",
        "global",
        "logits",
    )
}


def test_the_model_passed_in_is_not_changed(float_model: tf_keras.Model, digits: Images) -> None:
    before = float_model.get_weights()
    config = float_model.to_json()
    qat = tfdq.quantize_model(float_model, activation_bits=2)
    qat.compile("adam", "sparse_categorical_crossentropy")
    qat.fit(digits[0][:128], digits[1][:128], verbose=0)
    for a, b in zip(before, float_model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert float_model.to_json() == config
    assert not float_model.losses


def test_keeps_the_weights_of_a_trained_model(float_model: tf_keras.Model, digits: Images) -> None:
    """At 8 bits on calibrated ranges the outputs stay near the float model's."""
    x = digits[0][:256]
    qat = tfdq.calibrate(tfdq.quantize_model(float_model, 0.0), x)
    expected, got = float_model.predict(x, verbose=0), qat.predict(x, verbose=0)
    assert np.abs(expected - got).max() < 0.1
    assert np.mean(expected.argmax(1) == got.argmax(1)) > 0.97


def test_every_layer_against_numpy(trained_qat: tf_keras.Model, digits: Images) -> None:
    """Each wrapper's output is its layer's float result, rounded to its grid."""
    x = tf.constant(digits[0][:32])
    results: dict[str, np.ndarray] = {"image": x.numpy()}
    by_name = {layer.name: layer for layer in trained_qat.layers}
    outputs = tf_keras.Model(trained_qat.input, [layer.output for layer in trained_qat.layers])(
        x, training=False
    )
    for layer, output in zip(trained_qat.layers, outputs, strict=True):
        results[layer.name] = output.numpy()
    checked = 0
    for name, layer in by_name.items():
        if isinstance(layer, L.InputLayer) or layer.output_grid() is None:
            continue
        grid = layer.output_grid()
        steps = results[name].astype(np.float64) / grid.scale
        np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)
        assert np.rint(steps).min() >= grid.qmin - grid.zero_point
        assert np.rint(steps).max() <= grid.qmax - grid.zero_point
        checked += 1
    assert checked == 18
    stem = by_name["quant_stem"]
    expected = _convolve_same(results["quant_rescale"], *stem.quantized_kernel())
    multiplier, offset = stem.layer.folded()
    grid = stem.output_grid()
    expected = np.clip(expected * multiplier + offset, 0, 15 * grid.scale)
    assert np.abs(results["quant_stem"] - expected).max() <= grid.scale / 2 + 1e-4


def _convolve_same(x: np.ndarray, q: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return a 3x3, stride 1, zero-padded convolution in float64."""
    kernel = q.astype(np.float64) * scale
    padded = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = x.shape[1:3]
    return sum(
        padded[:, i : i + height, j : j + width] @ kernel[i, j]
        for i, j in itertools.product(range(3), range(3))
    )


@pytest.mark.parametrize("on", ["kernel", "folded", "deployed"])
def test_penalty_is_that_of_the_chosen_kernel(float_model: tf_keras.Model, on: str) -> None:
    qat = tfdq.quantize_model(float_model, 0.01, on=on, weight_bits=3)
    assert len(qat.losses) == 9  # a SeparableConv2D has two kernels
    stem = qat.get_layer("quant_stem")
    kernel = stem.layer.kernel.numpy().astype(np.float64)
    if on == "deployed":
        scale = np.abs(kernel).max((0, 1, 2)) / 3
        kernel = np.floor(kernel / scale + 0.5) * scale
    if on != "kernel":
        norm = float_model.get_layer("stem_norm")
        kernel = kernel * norm.gamma.numpy() / np.sqrt(norm.moving_variance.numpy() + norm.epsilon)
    matrix = kernel.reshape(9, 8)
    expected = 0.005 * np.linalg.norm(matrix.T @ matrix - np.eye(8) / 9) ** 2  # target 1/k
    np.testing.assert_allclose(stem.losses, [expected], rtol=1e-4)


def test_gradient_of_the_deployed_penalty_reaches_kernel_and_gamma(
    float_model: tf_keras.Model,
) -> None:
    qat = tfdq.quantize_model(float_model, 0.01)
    stem = qat.get_layer("quant_stem").layer
    with tf.GradientTape() as tape:
        total = tf.add_n(qat.losses)
    kernel, gamma = tape.gradient(total, [stem.kernel, stem.batch_norm.gamma])
    assert float(tf.norm(kernel)) > 0
    assert float(tf.norm(gamma)) > 0


def test_beta_zero_is_the_same_model_without_the_penalty(
    float_model: tf_keras.Model, digits: Images
) -> None:
    vanilla, defensive = (
        tfdq.calibrate(tfdq.quantize_model(float_model, b, activation_bits=3), digits[0][:64])
        for b in (0, 2e-3)
    )
    assert vanilla.losses == []
    np.testing.assert_array_equal(
        vanilla.predict(digits[0][:64], verbose=0), defensive.predict(digits[0][:64], verbose=0)
    )


def test_bits_of_single_layers() -> None:
    qat = tfdq.quantize_model(
        every_layer(),
        weight_bits=4,
        activation_bits=2,
        first_last_bits=8,
        layer_bits={"inline": 6, "hidden": (5, 3)},
    )
    bits = {name: qat.get_layer(f"quant_{name}").bits for name in ("stem", "inline", "hidden")}
    assert bits == {"stem": (8, 8), "inline": (6, 6), "hidden": (5, 3)}
    assert qat.get_layer("quant_logits").bits == (8, 8)
    assert qat.get_layer("quant_depthwise").bits == (4, 2)


def test_moving_average_range_keeps_relu(digits: Images) -> None:
    qat = tfdq.quantize_model(every_layer(), 0.0, activation_range="moving_average")
    stem = qat.get_layer("quant_stem")
    assert stem.layer.fused_activation == "relu"
    tfdq.calibrate(qat, digits[0])
    assert stem.output_grid().zero_point == -128


@pytest.mark.parametrize(
    ("relu", "kind"),
    [
        (lambda: L.ReLU(), "relu"),
        (lambda: L.ReLU(6.0), "relu6"),
        (lambda: L.Activation("relu"), "relu"),
        (lambda: L.Activation("relu6"), "relu6"),
        (lambda: L.Activation(tf.nn.relu6), "relu6"),
    ],
)
def test_every_way_to_write_a_relu_is_fused(relu: Callable[[], L.Layer], kind: str) -> None:
    inputs = L.Input((4, 4, 2))
    model = tf_keras.Model(inputs, relu()(L.Conv2D(3, 1, name="conv")(inputs)))
    observed = tfdq.quantize_model(model, activation_bits=4)
    paper = tfdq.quantize_model(model, activation_bits=4, activation_range="relu6")
    for qat, fused in ((observed, kind), (paper, "relu6")):
        assert [layer.name for layer in qat.layers[2:]] == ["quant_conv"]
        assert qat.get_layer("quant_conv").layer.fused_activation == fused
        assert qat.get_layer("quant_conv").bits == (8, 4)
    quantizer = paper.get_layer("quant_conv").output_quantizer
    assert isinstance(quantizer, FixedRangeQuantizer)
    assert (quantizer.bits, quantizer.low, quantizer.high) == (4, 0.0, 6.0)


def test_a_relu6_still_cuts_when_its_range_is_observed() -> None:
    inputs = L.Input((2,))
    dense = L.Dense(1, use_bias=False, kernel_initializer="ones", name="dense")
    model = tf_keras.Model(inputs, L.ReLU(6.0)(dense(inputs)))
    x = np.array([[1.0, 1.0], [5.0, 7.0]], np.float32)
    qat = tfdq.calibrate(tfdq.quantize_model(model, 0.0, activation_bits=8), x)
    np.testing.assert_allclose(qat(x), model(x), atol=6 / 255)
    grid = qat.get_layer("quant_dense").output_grid()
    assert (grid.qmax - grid.zero_point) * grid.scale == pytest.approx(6.0)


def test_a_skipped_layer_stays_float(digits: Images) -> None:
    qat = tfdq.quantize_model(every_layer(), skip=["branch"])
    assert type(qat.get_layer("branch")) is L.Conv2D
    qat.compile("adam", "sparse_categorical_crossentropy")
    qat.fit(digits[0][:64], digits[1][:64], verbose=0)


def test_stateless_layers_may_be_shared_and_nested_models_repeat_names() -> None:
    relu = L.ReLU(name="relu")
    inner_input = L.Input((4, 4, 3))
    inner = tf_keras.Model(inner_input, L.Conv2D(3, 1, name="conv")(inner_input), name="inner")
    inputs = L.Input((4, 4, 3))
    x = relu(L.Conv2D(3, 1, name="conv")(inputs))
    x = L.MaxPooling2D(1)(relu(inner(x)))
    qat = tfdq.quantize_model(tf_keras.Model(inputs, x), activation_bits=4)
    assert [n for n in (layer.name for layer in qat.layers) if "conv" in n] == [
        "quant_conv",
        "quant_conv_1",
    ]
    assert all(
        isinstance(qat.get_layer(f"quant_{n}").layer, FusedConv2D) for n in ("conv", "conv_1")
    )


def test_several_inputs_and_outputs() -> None:
    a, b = L.Input((4, 4, 2), name="a"), L.Input((4, 4, 2), name="b")
    joined = L.Concatenate()([L.Conv2D(3, 1, activation="relu")(a), L.Conv2D(3, 1)(b)])
    flat = L.Flatten()(joined)
    model = tf_keras.Model([a, b], [L.Dense(2, name="one")(flat), L.Dense(3, name="two")(flat)])
    qat = tfdq.quantize_model(model)
    assert [t.name for t in qat.inputs] == ["a", "b"]
    x = np.random.default_rng(0).uniform(size=(2, 5, 4, 4, 2)).astype(np.float32)
    tfdq.calibrate(qat, tf.data.Dataset.from_tensors(((x[0], x[1]),)))
    one, two = qat.predict([x[0], x[1]], verbose=0)
    assert (one.shape, two.shape) == ((5, 2), (5, 3))


def test_fixed_input_range() -> None:
    qat = tfdq.quantize_model(every_layer(), input_range=(0.0, 1.0))
    quantizer = qat.layers[1]
    assert isinstance(quantizer, InputQuantizer)
    assert quantizer.weights == []
    np.testing.assert_allclose(quantizer.output_grid().scale, 1 / 255, rtol=1e-6)


def test_everything_with_weights_is_wrapped(trained_qat: tf_keras.Model) -> None:
    assert all(
        isinstance(layer, (L.InputLayer, InputQuantizer, QuantizeWrapper))
        for layer in trained_qat.layers
    )


def test_freezing_a_layer_freezes_it(float_model: tf_keras.Model, digits: Images) -> None:
    qat = tfdq.quantize_model(float_model)
    qat.get_layer("quant_inline").trainable = False
    before = qat.get_layer("quant_inline").layer.kernel.numpy()
    qat.compile("sgd", "sparse_categorical_crossentropy")
    qat.fit(digits[0][:128], digits[1][:128], verbose=0)
    np.testing.assert_array_equal(qat.get_layer("quant_inline").layer.kernel.numpy(), before)


@pytest.mark.parametrize("name", ["orthogonal", "srip", "spectral", "conv_orthogonal"])
def test_penalties_by_name_train_and_save(name: str, digits: Images, tmp_path: Path) -> None:
    inputs = L.Input((8, 8, 1))
    x = L.Conv2D(8, 3, strides=2, use_bias=False, name="conv")(inputs)
    x = L.ReLU()(L.BatchNormalization()(x))
    model = tf_keras.Model(inputs, L.Dense(10)(L.Flatten()(L.DepthwiseConv2D(3)(x))))
    qat = tfdq.quantize_model(model, 0.01, regularizer=name)
    assert type(qat.get_layer("quant_conv").layer.penalty).__name__.lower().startswith(name[:4])
    qat.compile("adam", tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    qat.fit(digits[0][:128], digits[1][:128], verbose=0)
    qat.save(tmp_path / "model.keras")
    loaded = tfdq.load_model(tmp_path / "model.keras")
    assert len(loaded.losses) == len(qat.losses) == 3
    assert all(np.isfinite(loaded.losses))


def test_keras3_models_stay_keras3_models() -> None:
    import keras

    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(4, 3, name="conv")(inputs)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(x)))
    images = np.random.default_rng(0).uniform(size=(16, 8, 8, 1)).astype(np.float32)
    expected = keras.ops.convert_to_numpy(model(images))
    for given, library in ((model, keras), (tfdq.from_keras3(model), tf_keras)):
        qat = tfdq.calibrate(tfdq.quantize_model(given), images)
        assert isinstance(qat, library.Model)
        assert np.abs(qat.predict(images, verbose=0) - expected).max() < 0.05
    with pytest.raises(TypeError, match=r"keeps it one; .* tfdq\.from_keras3\(model\)"):
        tfdq.quantization.quantize_model(model)
