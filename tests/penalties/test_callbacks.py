"""The callbacks: retraction, BatchNorm bound, schedules, TensorBoard log."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tfdq.certificates.log_callback import LipschitzLogger
from tfdq.penalties.callbacks import (
    BatchNormBound,
    ParsevalRetraction,
    PenaltySchedule,
    penalties,
)
from tfdq.penalties.names import get_regularizer
from tfdq.penalties.schedules import Ramp

layers = tf_keras.layers


def small_network(**conv) -> tf_keras.Model:
    """Return a compiled network with a BatchNorm of its own, a depthwise and a dense layer."""
    inputs = tf_keras.Input((6, 6, 2))
    x = layers.BatchNormalization(name="norm", momentum=0.5)(inputs)
    x = layers.Conv2D(4, 3, activation="relu", name="conv", **conv)(x)
    x = layers.DepthwiseConv2D(3, name="depthwise")(x)
    model = tf_keras.Model(inputs, layers.Dense(3, name="dense")(layers.Flatten()(x)))
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf_keras.optimizers.SGD(0.1), loss)
    return model


def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((32, 6, 6, 2)).astype(np.float32), rng.integers(0, 3, 32)


def fit(model: tf_keras.Model, *callbacks, epochs: int = 2) -> None:
    model.fit(*data(), epochs=epochs, batch_size=8, verbose=0, callbacks=list(callbacks))


def test_retraction_is_its_formula() -> None:
    model = small_network()
    model.optimizer.learning_rate.assign(0.0)
    before = {name: model.get_layer(name).get_weights()[0] for name in ("conv", "dense")}
    depth = model.get_layer("depthwise").get_weights()[0].astype(np.float64)
    model.fit(*data(), batch_size=32, verbose=0, callbacks=[ParsevalRetraction(0.2, target=0.8)])
    for name, kernel in before.items():
        w = kernel.reshape(-1, kernel.shape[-1]).astype(np.float64)
        expected = 1.2 * w - 0.2 / 0.64 * w @ w.T @ w
        actual = model.get_layer(name).get_weights()[0].reshape(w.shape)
        np.testing.assert_allclose(actual, expected, atol=1e-5)
    for channel in range(4):
        w = depth[:, :, channel].reshape(9, 1)
        expected = 1.2 * w - 0.2 / 0.64 * w @ w.T @ w
        actual = model.get_layer("depthwise").get_weights()[0][:, :, channel].reshape(9, 1)
        np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_retraction_makes_kernels_orthogonal() -> None:
    model = small_network()
    fit(model, ParsevalRetraction(0.3, layers=["conv"]), epochs=10)
    values = np.linalg.svd(model.get_layer("conv").kernel.numpy().reshape(-1, 4), compute_uv=False)
    np.testing.assert_allclose(values, 1.0, atol=0.1)


def test_retraction_can_wait() -> None:
    model = small_network()
    model.optimizer.learning_rate.assign(0.0)
    before = model.get_layer("conv").get_weights()[0]
    fit(model, ParsevalRetraction(0.3, every=5), epochs=1)
    np.testing.assert_array_equal(model.get_layer("conv").get_weights()[0], before)


def test_batch_norm_bound_holds() -> None:
    model = small_network()
    norm = model.get_layer("norm")
    norm.gamma.assign([40.0, -0.1])
    model.optimizer.learning_rate.assign(0.0)
    fit(model, BatchNormBound(0.5))
    factor = norm.gamma.numpy() / np.sqrt(norm.moving_variance.numpy() + norm.epsilon)
    assert np.all(np.abs(factor) <= 0.5 * (1 + 1e-6))
    assert factor[0] > 0.4
    assert norm.gamma.numpy()[1] == np.float32(-0.1)


def test_schedule_moves_the_weight_of_a_compiled_loop() -> None:
    regularizer = get_regularizer("orthogonal", 0.7, target=1.0)
    model = small_network(kernel_regularizer=regularizer)
    assert penalties(model) == [regularizer]
    kernel = model.get_layer("conv").kernel.numpy().reshape(-1, 4).astype(np.float64)
    deviation = 0.5 * np.sum((kernel.T @ kernel - np.eye(4)) ** 2)
    model.optimizer.learning_rate.assign(0.0)
    seen = []
    watch = tf_keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(float(tf.add_n(model.losses)))
    )
    fit(model, PenaltySchedule(Ramp(0.0, 0.2, begin=0, end=2)), watch, epochs=4)
    np.testing.assert_allclose(seen, deviation * np.array([0.0, 0.1, 0.2, 0.2]), rtol=1e-5)


def test_ramp() -> None:
    ramp = Ramp(1.0, 3.0, begin=2, end=6)
    assert [ramp(t) for t in (0, 2, 3, 6, 9)] == [1.0, 1.0, 1.5, 3.0, 3.0]
    with pytest.raises(ValueError, match="end after"):
        Ramp(0.0, 1.0, 3, 3)
    with pytest.raises(ValueError, match="finite"):
        Ramp(0.0, np.inf, 0, 3)


def test_logger_writes_what_the_report_says(tmp_path) -> None:
    model = small_network()
    x, _ = data()
    logger = LipschitzLogger(tmp_path, every=2, x=x[:2], spectra=True)
    fit(model, logger, epochs=3)
    scalars, histograms = {}, {}
    for file in tmp_path.iterdir():
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            for value in event.summary.value:
                tensor = tf.make_ndarray(value.tensor)
                if value.metadata.plugin_data.plugin_name == "scalars":
                    scalars.setdefault(value.tag, []).append((event.step, float(tensor)))
                else:
                    assert value.metadata.plugin_data.plugin_name == "histograms"
                    histograms[value.tag] = tensor
    assert set(scalars) == {
        "lipschitz/network/estimate",
        "lipschitz/network/lower",
        *(
            f"lipschitz/{n}/{what}"
            for n in ("conv", "depthwise", "dense")
            for what in ("norm", "reshaped")
        ),
    }
    assert set(histograms) == {f"lipschitz/{n}/spectrum" for n in ("conv", "depthwise", "dense")}
    steps, values = zip(*scalars["lipschitz/network/estimate"], strict=True)
    assert steps == (1,)
    assert values[0] == pytest.approx(logger.last.estimate, rel=1e-5)
    spectrum = logger.last.spectra["dense"]
    left, right, counts = histograms["lipschitz/dense/spectrum"].T
    expected, edges = np.histogram(spectrum, bins=len(counts))
    np.testing.assert_array_equal(counts, expected)
    np.testing.assert_allclose(np.append(left, right[-1]), edges)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ParsevalRetraction(0.6), "beta"),
        (lambda: ParsevalRetraction(0.1, every=0), "every"),
        (lambda: BatchNormBound(0.0), "limit"),
        (lambda: LipschitzLogger("x", every=0), "every"),
        (lambda: LipschitzLogger("x", kernel="int"), "kernel"),
    ],
)
def test_wrong_arguments_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_what_is_not_there_is_refused_before_training() -> None:
    model = small_network()
    for callback, message in (
        (PenaltySchedule(lambda epoch: 1.0), "no kernel penalty"),
        (ParsevalRetraction(0.1, layers=["nothing"]), "nothing"),
        (BatchNormBound(1.0, layers=["nothing"]), "nothing"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(model, callback)
    bare = tf_keras.Sequential([tf_keras.Input((3,)), layers.BatchNormalization(scale=False)])
    bare.compile("sgd", "mse")
    with pytest.raises(ValueError, match="no gamma"):
        bare.fit(np.ones((2, 3)), np.ones((2, 3)), verbose=0, callbacks=[BatchNormBound()])
    with pytest.raises(ValueError, match="no layer with a kernel"):
        bare.fit(np.ones((2, 3)), np.ones((2, 3)), verbose=0, callbacks=[ParsevalRetraction()])
    falling = small_network(kernel_regularizer=get_regularizer("srip", 0.1))
    with pytest.raises(ValueError, match="at epoch 0"):
        fit(falling, PenaltySchedule(lambda epoch: -1.0))
