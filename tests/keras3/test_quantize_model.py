"""`quantize_model` on Keras 3: what stays of a model, what is refused, what seals."""

from __future__ import annotations

import re
from typing import Any

import keras
import numpy as np
import pytest

from tests.keras3.deployed import assert_deployed
from tests.keras3.networks import small_cnn
from tfdq.keras3 import QuantizedModel, calibrate, quantize_model
from tfdq.keras3.layer_kinds import QuantizedConv2D, QuantizedDense

L = keras.layers
pytestmark = pytest.mark.backends


def images(count: int = 16) -> np.ndarray:
    return np.random.default_rng(0).random((count, 8, 8, 1)).astype(np.float32)


def numpy(tensor: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(tensor)


@pytest.fixture(scope="module")
def fitted() -> QuantizedModel:
    """Return a small network, fitted with validation."""
    model = quantize_model(small_cnn(), activation_bits=4)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    labels = np.arange(16) % 10
    history = model.fit(
        images(), labels, batch_size=8, validation_data=(images(), labels), verbose=0
    )
    assert np.isfinite(history.history["val_loss"]).all()
    return model


def test_names_and_weights_are_those_of_the_model() -> None:
    model = small_cnn()
    before = [weight.copy() for weight in model.get_weights()]
    quantized = quantize_model(model)
    assert quantized.output_names == model.output_names
    assert [x.name for x in quantized.inputs] == [x.name for x in model.inputs]
    kernels = [layer for layer in model.layers if isinstance(layer, L.Conv2D)]
    for layer in kernels:
        copy = quantized.get_layer(layer.name)
        assert isinstance(copy, QuantizedConv2D)
        np.testing.assert_array_equal(numpy(copy.kernel), numpy(layer.kernel))
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    for name in ("batch_normalization", "re_lu"):
        assert not any(layer.name.startswith(name) for layer in quantized.layers)


def test_inputs_and_outputs_keep_their_structure_and_nested_models_are_flattened() -> None:
    inner_image = keras.Input((8, 8, 1))
    inner = keras.Model(inner_image, L.Conv2D(4, 3, activation="relu")(inner_image), name="inner")
    image = keras.Input((8, 8, 1), name="image")
    features = inner(image)
    pooled = L.GlobalAveragePooling2D(name="pooled")(features)
    outputs = {"features": pooled, "logits": L.Dense(3, name="logits")(pooled)}
    model = calibrate(quantize_model(keras.Model({"image": image}, outputs)), {"image": images()})
    found = model.predict({"image": images()}, verbose=0)
    assert {name: value.shape for name, value in found.items()} == {
        "features": (16, 4),
        "logits": (16, 3),
    }
    assert_deployed(model, images(), compiled=False)


def test_frozen_parts_stay_frozen() -> None:
    image = keras.Input((8, 8, 1))
    x = L.Conv2D(4, 3, use_bias=False, name="frozen", trainable=False)(image)
    x = L.BatchNormalization(trainable=False)(x)
    x = L.Conv2D(4, 3, use_bias=False, name="inference")(L.ReLU()(x))
    x = L.BatchNormalization()(x, training=False)
    model = quantize_model(keras.Model(image, L.Dense(2)(L.Flatten()(x))), 0.0)
    calibrate(model, images())
    assert not model.get_layer("frozen").trainable_variables
    frozen, inference = model.get_layer("frozen"), model.get_layer("inference")
    watched = (frozen.moving_mean, frozen.range.high, inference.moving_mean)
    before = [numpy(variable).copy() for variable in watched]
    model(images() * 3.0, training=True)
    after = [numpy(variable) for variable in watched]
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)
    assert len(model.get_layer("inference").trainable_variables) == 3


def test_regularizers_and_constraints_stay() -> None:
    image = keras.Input((4,))
    dense = L.Dense(
        2, kernel_regularizer=keras.regularizers.L2(0.5), bias_constraint="non_neg", name="dense"
    )
    model = quantize_model(keras.Model(image, dense(image)), 0.0)
    copy = model.get_layer("dense")
    assert isinstance(copy, QuantizedDense)
    wanted = 0.5 * np.square(numpy(copy.kernel)).sum()
    np.testing.assert_allclose(numpy(model.losses[0]), wanted, rtol=1e-5)
    assert copy.bias.constraint is not None


def test_bits_are_those_asked_for() -> None:
    model = quantize_model(
        small_cnn(), weight_bits=4, activation_bits=3, first_last_bits=8, layer_bits={"logits": 5}
    )
    first, second = [layer for layer in model.layers if isinstance(layer, QuantizedConv2D)]
    assert (first.weight_bits, first.output_settings.bits) == (8, 8)
    assert (second.weight_bits, second.output_settings.bits) == (4, 3)
    assert model.get_layer("logits").weight_bits == 5


def test_all_unsupported_layers_are_listed_at_once() -> None:
    image = keras.Input((8, 8, 3))
    x = L.Conv2D(4, 3, activation="selu", name="selu_conv")(image)
    x = L.LayerNormalization(axis=1, name="norm")(x)
    x = L.ReLU(threshold=1.0, name="threshold")(x)
    x = L.Concatenate(axis=0, name="batch")([x, x])
    x = L.BatchNormalization(axis=1, name="rows")(x)
    x = L.Flatten()(x) ** 2.0
    with pytest.raises(ValueError, match=r"6 layer\(s\) cannot be quantized") as error:
        quantize_model(keras.Model(image, x))
    for name in ("selu_conv", "norm", "threshold", "batch", "rows", "power"):
        assert re.search(rf"'{name}(_\d+)?' \(", str(error.value)), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lipschitz_beta": -1.0}, "lipschitz_beta must be a finite number >= 0, got -1.0"),
        ({"lipschitz_beta": float("nan")}, "lipschitz_beta"),
        ({"on": "weights"}, "'kernel', 'folded' or 'deployed', got 'weights'"),
        ({"target": 0}, "target"),
        ({"weight_bits": 1}, "weight_bits must be a whole number from 2 to 8, got 1"),
        ({"activation_bits": True}, "activation_bits"),
        ({"first_last_bits": 9}, "first_last_bits"),
        ({"layer_bits": {"logits": (1, 8)}}, "layer_bits.logits must be bits"),
        ({"layer_bits": {"nowhere": 4}}, "no layer is called .*nowhere"),
        ({"activation_range": "max"}, "'relu6', 'moving_average' or 'learned'"),
        ({"kernel_range": "relu6"}, "'max' or 'learned'"),
        ({"input_range": (1.0, 2.0)}, "contain 0"),
        ({"input_range": (0.0, float("inf"))}, "two finite numbers"),
        ({"batch_norm_momentum": 1.0}, "batch_norm_momentum"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantize_model(small_cnn(), **settings)


def test_bad_models_are_named() -> None:
    class Own(keras.Model):
        def call(self, x: Any) -> Any:
            return x

    with pytest.raises(TypeError, match="expected a Functional or Sequential model"):
        quantize_model("model")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="subclassed"):
        quantize_model(Own())
    with pytest.raises(ValueError, match="not built"):
        quantize_model(keras.Sequential([L.Dense(2)]))
    with pytest.raises(ValueError, match="quantized already"):
        quantize_model(quantize_model(small_cnn()))
    broken = small_cnn()
    broken.layers[1].kernel.assign(np.full(broken.layers[1].kernel.shape, np.nan))
    with pytest.raises(ValueError, match="NaN or infinite"):
        quantize_model(broken)
    with pytest.raises(ValueError, match="build the model for inputs of one size"):
        quantize_model(keras.Sequential([keras.Input((None, None, 1)), L.Conv2D(2, 3)]))


def test_a_model_that_has_seen_no_data_says_so(tmp_path: Any) -> None:
    model = quantize_model(small_cnn())
    with pytest.raises(ValueError, match=r"has not seen any data yet: train .*\.calibrate"):
        model.predict(images(), verbose=0)
    assert np.isnan(numpy(model(images(), training=False))).all()
    model.save(tmp_path / "untrained.keras")
    with pytest.raises(ValueError, match="no images"):
        calibrate(model, images(0))
    with pytest.raises(TypeError, match=r"tfdq\.keras3\.quantize_model"):
        calibrate(small_cnn(), images())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("factor", "message"),
    [(0.0, "'image_quantizer' has seen no data but zeros"), (np.inf, r"'image_quantizer' .*NaN")],
)
def test_ranges_without_a_step_are_named(factor: float, message: str, tmp_path: Any) -> None:
    model = quantize_model(small_cnn())
    for batch in (images() * factor, images() * factor):
        model(batch, training=True)
    for use in (model.seal, lambda: model.predict(images(), verbose=0)):
        with pytest.raises(ValueError, match=message):
            use()
    # What was trained can be saved all the same; without constants it gives no numbers.
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert np.isnan(numpy(again(images(), training=False))).all()


def test_calibration_on_black_images_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no data but zeros .*calibrate"):
        calibrate(quantize_model(small_cnn()), np.zeros((4, 8, 8, 1), np.float32))


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="Keras refuses it itself on this backend"
)
def test_synchronized_statistics_are_refused() -> None:
    image = keras.Input((4,))
    norm = L.BatchNormalization(synchronized=True, name="it")
    with pytest.raises(ValueError, match=r"'it' \(BatchNormalization\): synchronized=True"):
        quantize_model(keras.Model(image, norm(L.Dense(2)(image))))


def test_stale_constants_give_no_numbers(fitted: QuantizedModel) -> None:
    labels = np.arange(16) % 10
    fitted.train_on_batch(images(), labels)
    assert np.isnan(numpy(fitted(images(), training=False))).all()
    fitted.seal()
    ours = numpy(fitted(images(), training=False))
    np.testing.assert_array_equal(ours, fitted.predict(images(), verbose=0))
    np.testing.assert_array_equal(ours, fitted.predict_on_batch(images()))


def test_every_way_to_infer_seals(fitted: QuantizedModel) -> None:
    labels = np.arange(16) % 10
    kernel = fitted.get_layer("logits").kernel
    first = fitted.predict(images(), verbose=0)
    kernel.assign(numpy(kernel) * 2.0)
    second = fitted.predict(images(), verbose=0)
    assert not np.array_equal(first, second)
    kernel.assign(numpy(kernel) * 0.5)
    assert np.isfinite(fitted.evaluate(images(), labels, verbose=0)).all()
    np.testing.assert_array_equal(first, numpy(fitted(images(), training=False)))


def test_calibration_moves_ranges_only(fitted: QuantizedModel) -> None:
    layer = next(layer for layer in fitted.layers if isinstance(layer, QuantizedConv2D))
    before = numpy(layer.moving_mean).copy(), numpy(layer.kernel).copy()
    high = float(numpy(layer.range.high))
    calibrate(fitted, images() * 4.0, batch_size=4)
    np.testing.assert_array_equal(before[0], numpy(layer.moving_mean))
    np.testing.assert_array_equal(before[1], numpy(layer.kernel))
    assert float(numpy(layer.range.high)) > high


def test_sums_beyond_float32_are_split_and_named(caplog: pytest.LogCaptureFixture) -> None:
    image = keras.Input((2000,))
    rng = np.random.default_rng(0)
    dense = L.Dense(3, name="wide")
    model = keras.Model(image, dense(image))
    dense.kernel.assign(rng.uniform(0.5, 1.0, (2000, 3)).astype(np.float32))
    x = rng.random((16, 2000)).astype(np.float32)
    caplog.set_level("INFO", "tfdq")
    quantized = calibrate(quantize_model(model, 0.0, input_range=(0, 1)), x)
    # 2,000 products of up to 255 * 127, more than half of it each: beyond three times 2**24.
    assert quantized.get_layer("wide").splits >= 3
    assert_deployed(quantized, x, compiled=False)
    quantized.predict(x, verbose=0)
    assert caplog.text.count("'wide' adds up more than float32 holds") == 1


@pytest.mark.parametrize("function", ["sigmoid", "tanh"])
def test_results_on_a_grid_of_their_own_count_as_they_are(function: str) -> None:
    """A sigmoid of two values, 0 and 1, is an integer of 128 or 187: sums of many are split."""
    image = keras.Input((2000,))
    rng = np.random.default_rng(0)
    dense = L.Dense(3, name="wide")
    model = keras.Model(image, dense(L.Activation(function)(L.ReLU()(image))))
    dense.kernel.assign(rng.uniform(0.5, 1.0, (2000, 3)).astype(np.float32))
    x = rng.random((16, 2000)).astype(np.float32)
    quantized = calibrate(quantize_model(model, 0.0, activation_bits=1), x)
    assert quantized.get_layer("wide").splits >= 2
    assert_deployed(quantized, x, compiled=False)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_changes_nothing(policy: str) -> None:
    before = keras.config.dtype_policy()
    weights = small_cnn().get_weights()
    results = []
    for name in ("float32", policy):
        keras.config.set_dtype_policy(name)
        try:
            model = small_cnn()
            model.set_weights(weights)
            quantized = calibrate(quantize_model(model, activation_bits=4), images())
            results.append(quantized.predict(images(), verbose=0))
        finally:
            keras.config.set_dtype_policy(before)
    np.testing.assert_array_equal(*results)
