"""A layer that is called several times: one kernel, and ranges of its own for each call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from tfdq.keras3 import QuantizedModel, calibrate, quantize_model
from tflite_export import convert
from tflite_export.files.read import read

L = keras.layers
RNG = np.random.default_rng(0)
IMAGES = [RNG.normal(scale=s, size=(24, 6, 6, 2)).astype(np.float32) for s in (1.0, 3.0)]


def numpy(tensor: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def siamese() -> keras.Model:
    """Two images through one encoder, which has every kind of weights, and a head called twice."""
    keras.utils.set_random_seed(0)
    image = keras.Input((6, 6, 2))
    x = L.Conv2D(4, 3, use_bias=False, name="conv")(image)
    x = L.ReLU()(L.BatchNormalization(name="norm")(x))
    x = L.PReLU(shared_axes=[1, 2], name="slopes")(L.SeparableConv2D(5, 3, name="separable")(x))
    encoder = keras.Model(image, L.Flatten()(x), name="encoder")
    pair = [keras.Input((6, 6, 2), name=name) for name in ("left", "right")]
    head = L.Dense(20, activation="relu", name="head")
    # Of a name that a second call could get.
    last = L.Dense(3, name="head_1")
    return keras.Model(pair, last(head(head(L.Subtract()([encoder(x) for x in pair])))))


@pytest.fixture(scope="module")
def trained() -> QuantizedModel:
    model = quantize_model(siamese(), 1e-3, weight_bits=4, activation_bits=6)
    model.compile(keras.optimizers.SGD(0.01), "mse")
    model.fit(IMAGES, np.ones((24, 3), np.float32), batch_size=8, verbose=0)
    return calibrate(model, IMAGES)


def test_the_file_computes_what_was_trained(trained: QuantizedModel) -> None:
    exported = convert(trained, calibration=IMAGES)
    assert exported.parity.exact
    graph = read(exported.content)
    kernels = [
        tensor.data.tobytes()
        for operator in graph.operators
        if operator.kind in ("CONV_2D", "FULLY_CONNECTED")
        for tensor in [graph.tensors[operator.inputs[1]]]
        if tensor.data is not None
    ]
    assert (len(kernels), len(set(kernels))) == (7, 4)


def test_weights_are_held_once_and_ranges_by_each_call(trained: QuantizedModel) -> None:
    assert len(trained.trainable_variables) == len(siamese().trainable_variables)
    for first, again in (("conv", "conv_1"), ("separable", "separable_1"), ("head", "head_2")):
        one, two = trained.get_layer(first), trained.get_layer(again)
        assert one.kernel is two.kernel
        assert not any(variable is one.kernel for variable in two.variables)
        assert float(numpy(one.range.high)) != float(numpy(two.range.high))
    assert trained.get_layer("conv").moving_mean is trained.get_layer("conv_1").moving_mean
    assert trained.get_layer("slopes").alpha is trained.get_layer("slopes_1").alpha
    assert trained.get_layer("head_1").kernel.shape == (20, 3)


def test_a_saved_model_shares_again(trained: QuantizedModel, tmp_path: Path) -> None:
    wanted = trained.predict(IMAGES, verbose=0)
    trained.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(IMAGES, verbose=0), wanted)
    assert loaded.get_layer("conv").kernel is loaded.get_layer("conv_1").kernel
    cloned = keras.models.clone_model(trained)
    cloned.set_weights(trained.get_weights())
    np.testing.assert_array_equal(cloned.predict(IMAGES, verbose=0), wanted)


def test_a_call_without_the_one_that_holds_its_weights_is_refused(trained: QuantizedModel) -> None:
    layer = trained.get_layer("head_2")
    alone = type(layer).from_config(layer.get_config())
    with pytest.raises(ValueError, match="'head_2' computes with the variables of 'head'"):
        alone((keras.ops.ones((1, 20)), keras.ops.ones(())))


def two_calls(shared: bool, beta: float) -> Any:
    """One Dense with BatchNorm on two inputs, or two with the same weights."""
    pair = [keras.Input((5,), name=name) for name in ("left", "right")]
    layers = [(L.Dense(4, name=f"dense{i}"), L.BatchNormalization(name=f"norm{i}")) for i in (1, 2)]
    if shared:
        layers[1] = layers[0]
    ends = [norm(dense(x)) for x, (dense, norm) in zip(pair, layers, strict=True)]
    for dense, _ in layers:
        dense.kernel.assign(np.linspace(-1, 1, 20).reshape(5, 4))
    return quantize_model(keras.Model(pair, ends), beta, on="kernel", batch_norm_momentum=0.9)


PAIR = [RNG.normal(scale=s, size=(16, 5)).astype(np.float32) for s in (1.0, 2.0)]


@pytest.mark.backends
def test_a_step_adds_the_gradients_of_all_calls() -> None:
    """Of two layers with the same weights each moves by its own."""
    moves, statistics = [], []
    for shared in (False, True):
        model = two_calls(shared, 0.0)
        layers = [layer for layer in model.layers if hasattr(layer, "kernel")]
        before = numpy(layers[0].kernel).copy()
        model.compile(keras.optimizers.SGD(0.1), ["mse", "mse"])
        model.fit(PAIR, [np.ones((16, 4), np.float32)] * 2, batch_size=16, verbose=0)
        moves.append([numpy(layer.kernel) - before for layer in layers])
        statistics.append([numpy(layer.moving_mean) for layer in layers])
    assert np.abs(moves[0]).max() > 1e-3
    np.testing.assert_allclose(moves[1][0], sum(moves[0]), rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(*moves[1])
    # The statistics follow one call after the other, in the order that Keras has.
    found = [0.9 * statistics[0][i] + 0.1 * statistics[0][1 - i] for i in (0, 1)]
    assert min(np.abs(statistics[1][0] - each).max() for each in found) < 1e-5


def test_the_penalty_counts_once() -> None:
    penalties = []
    for shared in (False, True):
        model = two_calls(shared, 1e-2)
        model(PAIR, training=True)
        penalties.append(float(sum(numpy(loss) for loss in model.losses)))
    assert penalties[1] > 0
    assert penalties[0] == pytest.approx(2 * penalties[1], rel=1e-6)


def test_statistics_are_estimated_over_all_calls() -> None:
    pair = [keras.Input((5,), name=name) for name in ("left", "right")]
    norm = L.BatchNormalization(name="norm")
    model = quantize_model(keras.Model(pair, [norm(x) for x in pair]), input_range=(-8.0, 8.0))
    calibrate(model, PAIR, batch_norm=True)
    step = 16 / 255
    rounded = np.rint(np.concatenate(PAIR) / step) * step
    found = model.get_layer("norm")
    np.testing.assert_allclose(numpy(found.moving_mean), rounded.mean(0), atol=step / 10)
    np.testing.assert_allclose(numpy(found.moving_variance), rounded.var(0), rtol=0.01)


def test_a_dense_on_vectors_and_on_sequences_is_refused_by_name() -> None:
    vector, sequence = keras.Input((4,)), keras.Input((3, 4))
    both = L.Dense(4, name="both")
    model = keras.Model([vector, sequence], [both(vector), both(sequence)])
    with pytest.raises(ValueError, match=r"'both' \(Dense\): .*called on tensors of several ranks"):
        quantize_model(model)


@pytest.mark.parametrize("kernel_range", ["max", "learned"])
@pytest.mark.parametrize("first", [False, True])
def test_calls_with_and_without_a_batch_norm_have_the_same_kernel(
    kernel_range: str, first: bool
) -> None:
    image = keras.Input((6,))
    dense = L.Dense(6, name="twice")
    x = L.ReLU()(L.BatchNormalization()(dense(image)) if first else dense(image))
    x = L.ReLU()(dense(x) if first else L.BatchNormalization()(dense(x)))
    model = quantize_model(keras.Model(image, L.Dense(3)(x)), 0.0, kernel_range=kernel_range)
    x = np.random.default_rng(0).normal(size=(32, 6)).astype(np.float32)
    model(x, training=True)
    calibrate(model, x)
    one, other = (layer for layer in model.layers if layer.name.startswith("twice"))
    kernels = [layer.quantized_kernel().integers for layer in (one, other)]
    np.testing.assert_array_equal(*kernels)
    assert convert(model, calibration=x).parity.exact
