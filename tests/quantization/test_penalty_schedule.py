"""The penalty's weight follows a schedule of the training step, in any training loop."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfdq
from tfdq.penalties import PenaltySchedule

L = tf_keras.layers
schedules = tf_keras.optimizers.schedules
Images = tuple[np.ndarray, np.ndarray]
WARM_UP = schedules.PolynomialDecay(0.0, 4, 0.1)


def scheduled(**arguments) -> tf_keras.Model:
    tf_keras.utils.set_random_seed(3)
    model = tf_keras.Sequential(
        [
            L.Conv2D(4, 3, use_bias=False, input_shape=(8, 8, 1)),
            L.BatchNormalization(),
            L.ReLU(),
            L.Flatten(),
            L.Dense(10),
        ]
    )
    settings = {"on": "kernel", "target": 1.0, "beta_schedule": WARM_UP, **arguments}
    qat = tfdq.quantize_model(model, **settings)
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    qat.compile(tf_keras.optimizers.SGD(0.0), loss)
    return qat


def deviation(model: tf_keras.Model) -> float:
    """What the paper's penalty is at weight 1, in NumPy."""
    total = 0.0
    for layer in model.layers:
        if getattr(layer, "layer", None) is not None and hasattr(layer.layer, "kernel"):
            kernel = layer.layer.kernel.numpy().astype(np.float64)
            matrix = kernel.reshape(-1, kernel.shape[-1])
            singular = np.linalg.svd(matrix, compute_uv=False)
            total += 0.5 * np.sum((singular**2 - 1) ** 2)
    return total


def test_weight_by_the_step(digits: Images) -> None:
    """At learning rate 0 the penalty is the schedule times a constant."""
    model = scheduled()
    x, y = digits[0][:48], digits[1][:48]
    seen = [float(tf.add_n(model.losses))]
    for _ in range(6):
        model.fit(x[:8], y[:8], batch_size=8, verbose=0)
        seen.append(float(tf.add_n(model.losses)))
    wanted = deviation(model) * np.array([0, 0, 0.025, 0.05, 0.075, 0.1, 0.1])
    np.testing.assert_allclose(seen, wanted, rtol=1e-5, atol=1e-9)
    before = seen[-1]
    model.evaluate(x, y, verbose=0)
    model.predict(x, verbose=0)
    assert float(tf.add_n(model.losses)) == before


def test_every_step_of_a_compiled_loop_counts(digits: Images) -> None:
    model = scheduled()
    model.compile(model.optimizer, model.loss, steps_per_execution=3)
    model.fit(digits[0][:24], digits[1][:24], batch_size=8, verbose=0)
    np.testing.assert_allclose(float(tf.add_n(model.losses)), 0.05 * deviation(model), rtol=1e-5)


def test_penalty_reaches_the_gradient(digits: Images) -> None:
    """The kernel moves by the penalty's gradient at the step's own weight."""
    models = {beta: scheduled(beta_schedule=None, lipschitz_beta=beta) for beta in (0.0, 0.025)}
    models["schedule"] = scheduled()
    kernels = {}
    for name, model in models.items():
        x, y = digits[0][:16], digits[1][:16]
        model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
        model.optimizer.learning_rate.assign(0.5)
        if name == "schedule":
            calls = [v for v in model.variables if "training_calls" in v.name]
            assert [int(v) for v in calls] == [2, 2]
            for variable in calls:
                variable.assign(1)  # The next is the step of index 1, weight 0.025.
        model.fit(x[:8], y[:8], batch_size=8, verbose=0)
        kernels[name] = model.layers[2].layer.kernel.numpy()
    np.testing.assert_allclose(kernels["schedule"], kernels[0.025], rtol=1e-5, atol=1e-7)
    assert np.abs(kernels["schedule"] - kernels[0.0]).max() > 1e-3


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("name", ["model.keras", "model.h5", "saved_model"])
def test_the_count_is_saved(name: str, digits: Images, tmp_path: Path) -> None:
    model = scheduled()
    x, y = digits[0][:24], digits[1][:24]
    model.fit(x, y, batch_size=8, verbose=0)
    model.save(tmp_path / name)
    loaded = tfdq.load_model(tmp_path / name, safe_mode=name != "saved_model")
    np.testing.assert_allclose(tf.add_n(loaded.losses), 0.05 * deviation(model), rtol=1e-5)
    loaded.fit(x[:8], y[:8], batch_size=8, verbose=0)
    np.testing.assert_allclose(tf.add_n(loaded.losses), 0.075 * deviation(model), rtol=1e-5)


def test_zero_beta_with_a_schedule_has_a_penalty(digits: Images) -> None:
    assert len(scheduled(lipschitz_beta=0.0).losses) == 2


def test_refused(digits: Images) -> None:
    with pytest.raises(TypeError, match=r"schedule of tf_keras.*got 0\.5"):
        scheduled(beta_schedule=0.5)
    with pytest.raises(ValueError, match="L2 has a weight of its own"):
        scheduled(regularizer=tf_keras.regularizers.L2(0.1))
    with pytest.raises(ValueError, match="one of the two schedules"):
        scheduled().fit(
            digits[0][:8],
            digits[1][:8],
            callbacks=[PenaltySchedule(lambda epoch: 0.1)],
            verbose=0,
        )


def test_target_of_the_named_penalties() -> None:
    """By default, ``1/k``, a 3x3 kernel aims at 1/3, a dense one at 1."""
    arguments = {"beta_schedule": None, "lipschitz_beta": 0.3}
    found = [float(v) for v in scheduled(target="1/k", **arguments).losses]
    assert [float(v) for v in scheduled(target=None, **arguments).losses] == found
    for penalty, name, tau in zip(found, ("conv2d", "dense"), (1 / 3, 1.0), strict=True):
        model = scheduled(**arguments)
        wrapped = [getattr(layer, "layer", None) for layer in model.layers]
        layer = next(x for x in wrapped if x is not None and x.name.startswith(name))
        matrix = layer.kernel.numpy().astype(np.float64).reshape(-1, layer.kernel.shape[-1])
        singular = np.linalg.svd(matrix, compute_uv=False)
        assert penalty == pytest.approx(0.15 * np.sum((singular**2 - tau**2) ** 2), rel=1e-5)
    with pytest.raises(ValueError, match="target must be"):
        scheduled(target="1/2", **arguments)


def test_target_of_the_exact_penalty_is_the_convolutions_own() -> None:
    """Its singular values are the convolution's already: by default it aims at 1."""
    arguments = {"beta_schedule": None, "lipschitz_beta": 0.3, "regularizer": "conv_orthogonal"}
    default, one, third = (
        [float(v) for v in scheduled(target=target, **arguments).losses]
        for target in (None, 1.0, "1/k")
    )
    assert default == one
    assert default[0] != third[0]


def test_a_keras_3_model_has_another_schedule() -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model = tfdq.quantize_model(model)
    model.compile("sgd", "mse")
    x, y = np.ones((4, 4), np.float32), np.ones((4, 3), np.float32)
    with pytest.raises(TypeError, match=r"Keras 3 model.* give tfdq\.quantize_model a beta"):
        model.fit(x, y, callbacks=[PenaltySchedule(lambda epoch: 0.1)], verbose=0)
