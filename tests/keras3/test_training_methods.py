"""N-FGSM, Free, TRADES, MART and a growing radius, one step of each next to NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tf_keras

import tfdq
from tests.tflite_export.trained import digits
from tfdq.keras3 import calibrate, quantize_model
from tfdq.robustness import CatastrophicOverfittingWarning
from tfdq.robustness.keras3_adversarial_training import (
    Keras3AdversarialTraining,
    Keras3OverfittingMonitor,
)

L = keras.layers
ops = keras.ops
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
EPS, RATE = 0.1, 0.1
each_backend = pytest.mark.backends


class Dense:
    """A dense layer and its losses in float64."""

    def __init__(self, model: keras.Model) -> None:
        self.weights = [w.astype(np.float64) for w in model.get_weights()]

    def shares(self, x: np.ndarray, weights: Any = None) -> np.ndarray:
        kernel, bias = self.weights if weights is None else weights
        logits = x.reshape(len(x), -1) @ kernel + bias
        powers = np.exp(logits - logits.max(-1, keepdims=True))
        return powers / powers.sum(-1, keepdims=True)

    def slope(self, x: np.ndarray, target: np.ndarray) -> np.ndarray:
        """The gradient by x of the cross-entropy, or divergence, of a target distribution."""
        return ((self.shares(x) - target) @ self.weights[0].T).reshape(x.shape)

    def descended(self, loss: Callable[[Any], float]) -> list[np.ndarray]:
        """The weights after a step of SGD, its gradient by central differences."""
        found = []
        for index, given in enumerate(self.weights):
            gradient = np.zeros_like(given)
            for at in np.ndindex(given.shape):
                values = []
                for sign in (1, -1):
                    moved = [w.copy() for w in self.weights]
                    moved[index][at] += sign * 1e-5
                    values.append(loss(moved))
                gradient[at] = (values[0] - values[1]) / 2e-5
            found.append(given - RATE * gradient)
        return found

    def step(self, x: np.ndarray, y: np.ndarray) -> None:
        """Take a step of SGD down the mean cross-entropy."""
        off = (self.shares(x) - np.eye(10)[y]) / len(x)
        self.weights[0] -= RATE * x.reshape(len(x), -1).T @ off
        self.weights[1] -= RATE * off.sum(0)


def dense() -> keras.Model:
    keras.utils.set_random_seed(1)
    model = keras.Sequential([L.Input((8, 8, 1)), L.Flatten(), L.Dense(10)])
    # Logits far from equal, as of a trained network.
    model.set_weights([3 * w for w in model.get_weights()])
    return model


def trainer(model: keras.Model, *args: Any, **options: Any) -> Keras3AdversarialTraining:
    found = tfdq.AdversarialTraining(model, *args, **options)
    assert type(found) is Keras3AdversarialTraining
    found.compile(keras.optimizers.SGD(RATE), LOSS)
    return found


def batch(count: int = 12) -> tuple[np.ndarray, np.ndarray]:
    x, y = (part[:count] for part in digits())
    return x.astype(np.float32), y


def drawn(fitted: Keras3AdversarialTraining, x: np.ndarray, y: np.ndarray, seed: Any) -> np.ndarray:
    """The trainer's own examples."""
    return np.asarray(
        ops.convert_to_numpy(
            fitted.perturb(ops.convert_to_tensor(x), ops.convert_to_tensor(y), seed=seed)
        )
    )


def assert_trained(fitted: Keras3AdversarialTraining, wanted: list[np.ndarray]) -> None:
    for ours, theirs in zip(fitted.model.get_weights(), wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-6)


def fit(fitted: Keras3AdversarialTraining, x: np.ndarray, y: np.ndarray, **options: Any) -> Any:
    given = {"batch_size": len(x), "callbacks": [Keras3OverfittingMonitor(x, y, queries=0)]}
    return fitted.fit(x, y, verbose=0, shuffle=False, **(given | options))


@each_backend
def test_n_fgsm_is_a_step_from_noise_twice_as_wide_as_the_ball() -> None:
    x, y = batch()
    fitted = trainer(dense(), "n-fgsm", EPS)
    noise = ops.convert_to_numpy(keras.random.uniform(x.shape, -1.0, 1.0, seed=5))
    start = np.clip(x + 2 * EPS * noise, 0, 1)
    wanted = start + EPS * np.sign(Dense(fitted.model).slope(start, np.eye(10)[y]))
    found = drawn(fitted, x, y, 5)
    np.testing.assert_allclose(found, np.clip(wanted, 0, 1), atol=1e-6)
    assert np.abs(found - x).max() > 2 * EPS
    half = drawn(trainer(dense(), "n-fgsm", EPS, step_size=EPS / 2), x, y, 5)
    assert np.abs(half - np.clip(start, 0, 1)).max() == pytest.approx(EPS / 2, abs=1e-6)


def trades(reference: Dense, x: np.ndarray, y: np.ndarray, moved: np.ndarray) -> Any:
    def loss(weights: Any) -> float:
        clean, attacked = (reference.shares(images, weights) for images in (x, moved))
        divergence = (clean * (np.log(clean) - np.log(attacked))).sum(-1)
        return float(np.mean(-np.log(clean[np.arange(len(y)), y]) + 4.0 * divergence))

    return loss


def mart(reference: Dense, x: np.ndarray, y: np.ndarray, moved: np.ndarray) -> Any:
    def loss(weights: Any) -> float:
        clean, attacked = (reference.shares(images, weights) for images in (x, moved))
        rows = np.arange(len(y))
        others = attacked.copy()
        others[rows, y] = 0
        boosted = -np.log(attacked[rows, y]) - np.log(1.0001 - others.max(-1))
        divergence = (clean * (np.log(clean) - np.log(attacked))).sum(-1)
        return float(np.mean(boosted + 4.0 * divergence * (1 - clean[rows, y])))

    return loss


@pytest.mark.parametrize("objective", [pytest.param("trades", marks=each_backend), "mart"])
def test_a_step_of_trades_and_of_mart(objective: str) -> None:
    """The attack, then the loss and its gradient by differences, for a batch and its weights."""
    x, y = batch()
    options: Any = {"objective": objective, "trade_off": 4.0, "steps": 3, "step_size": 0.04}
    fitted = trainer(dense(), "pgd", EPS, **options)
    reference = Dense(fitted.model)
    noise = ops.convert_to_numpy(keras.random.normal(x.shape, seed=5))
    moved = np.clip(x + 0.001 * noise, 0, 1).astype(np.float64)
    target = reference.shares(x) if objective == "trades" else np.eye(10)[y]
    for _ in range(3):
        moved = moved + 0.04 * np.sign(reference.slope(moved, target))
        moved = np.clip(np.clip(moved, x - EPS, x + EPS), 0, 1)
    np.testing.assert_allclose(drawn(fitted, x, y, 5), moved, atol=1e-5)

    moved = drawn(trainer(dense(), "pgd", EPS, **options), x, y, None).astype(np.float64)
    loss = {"trades": trades, "mart": mart}[objective](reference, x.astype(np.float64), y, moved)
    history = fit(fitted, x, y).history
    assert history["loss"][0] == pytest.approx(loss(None), rel=1e-5)
    assert_trained(fitted, reference.descended(loss))


def test_weights_of_images_and_one_hot_labels_count_in_both_terms() -> None:
    x, y = batch(8)
    weights = np.array([1, 1, 1, 1, 0, 0, 0, 0], np.float32)
    trained = []
    for labels, given, count in ((y, weights, 8), (np.eye(10)[y], weights, 8), (y, None, 4)):
        fitted = tfdq.AdversarialTraining(dense(), "r+fgsm", EPS, objective="mart", ratio=1.0)
        one_hot = keras.losses.CategoricalCrossentropy(from_logits=True)
        fitted.compile(keras.optimizers.SGD(RATE), LOSS if labels is y else one_hot)
        # A normal draw of fewer images is another one: the radius is as good as none.
        fitted.eps = fitted.step_size = 1e-6
        # Half of the images weigh nothing, and the mean is over all eight.
        fitted.optimizer.learning_rate = RATE if count == 8 else RATE / 2
        given = None if given is None else given[:count]
        fit(fitted, x[:count], labels[:count], sample_weight=given)
        trained.append(fitted.model.get_weights()[0])
    np.testing.assert_allclose(trained[0], trained[1], atol=1e-6)
    np.testing.assert_allclose(trained[0], trained[2], atol=1e-5)


@each_backend
def test_free_training_carries_its_perturbation() -> None:
    """Two batches, the second one shorter, each three times; one gradient moves both."""
    x, y = batch(14)
    fitted = trainer(dense(), "free", EPS, steps=3, step_size=0.04)
    reference, carried = Dense(fitted.model), np.zeros((8, *x.shape[1:]))
    for part in (slice(0, 8), slice(8, 14)):
        for _ in range(3):
            count = len(x[part])
            moved = np.clip(x[part] + carried[:count], 0, 1)
            slope = reference.slope(moved, np.eye(10)[y[part]])
            reference.step(moved, y[part])
            onwards = carried[:count] + 0.04 * np.sign(slope)
            carried[:count] = np.clip(onwards, -EPS, EPS)
    fit(fitted, x, y, batch_size=8)
    assert_trained(fitted, reference.weights)
    found = ops.convert_to_numpy(fitted.perturbation)
    np.testing.assert_allclose(found, carried, atol=1e-6)
    assert len(fitted.model.get_weights()) == 2
    with pytest.raises(ValueError, match="began with batches of 8"):
        fitted.fit(x, y, batch_size=12)


def test_free_training_takes_its_perturbation_from_the_first_batch() -> None:
    x, y = batch(8)
    by_fit, by_batch = (trainer(dense(), "free", EPS, steps=3, step_size=0.04) for _ in "ab")
    with pytest.raises(RuntimeError, match=r"no perturbation yet.*with fit or train_on_batch"):
        by_batch(x, training=True)
    for _ in range(2):
        by_batch.train_on_batch(x, y)
    fit(by_fit, x, y, epochs=2)
    assert np.abs(ops.convert_to_numpy(by_batch.perturbation)).max() > 0.04
    assert_trained(by_batch, by_fit.model.get_weights())


def test_another_attack_than_the_trainers_takes_its_own_step() -> None:
    x, y = (ops.convert_to_tensor(part) for part in batch())
    for attack, steps in (("n-fgsm", 0), ("pgd", 3)):
        found = [
            fitted.perturb(x, y, attack, steps, seed=5)
            for fitted in (
                trainer(dense(), attack, EPS, steps=3),
                trainer(dense(), "pgd" if attack == "n-fgsm" else "n-fgsm", EPS, steps=3),
                trainer(dense(), "free", EPS, steps=3, step_size=EPS / 7),
            )
        ]
        for other in found[1:]:
            np.testing.assert_array_equal(
                ops.convert_to_numpy(other), ops.convert_to_numpy(found[0])
            )


@pytest.mark.parametrize(
    ("own", "asked", "words"),
    [
        ("pgd", "nfgsm", r"attack must be one of \('r\+fgsm',.*got 'nfgsm'"),
        ("pgd", "free", r"no examples of it outside.*perturb\(x, y, 'pgd'\)"),
        ("free", None, r"no examples of it outside.*perturb\(x, y, 'pgd'\)"),
    ],
)
def test_examples_that_no_attack_finds_are_refused(own: str, asked: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        trainer(dense(), own).perturb(*batch(2), asked)


def test_the_radius_grows() -> None:
    x, y = batch(8)
    fitted = trainer(dense(), "fgsm", EPS, ratio=1.0, warmup_steps=2)
    reference = Dense(fitted.model)
    for share in (0.5, 1.0, 1.0):
        slope = reference.slope(x, np.eye(10)[y])
        reference.step(np.clip(x + share * EPS * np.sign(slope), 0, 1), y)
    fit(fitted, x, y, epochs=3)
    assert_trained(fitted, reference.weights)


def small_network() -> keras.Model:
    image = keras.Input((8, 8, 1))
    x = L.ReLU()(L.BatchNormalization(momentum=0.9)(L.Conv2D(6, 3, use_bias=False)(image)))
    return keras.Model(image, L.Dense(10)(L.Flatten()(x)))


def test_a_quantized_network_trains_and_averages_its_weights() -> None:
    """Keras' own average over the steps; statistics and ranges of it are estimated anew."""
    x, y = batch(96)
    keras.utils.set_random_seed(0)
    model = quantize_model(small_network(), activation_bits=4, input_range=(0, 1))
    fitted = tfdq.AdversarialTraining(model, "pgd", EPS, objective="trades", steps=2)
    optimizer = keras.optimizers.Adam(0.02, use_ema=True, ema_momentum=0.5)
    fitted.compile(optimizer, LOSS, metrics=["accuracy"])
    kernel, seen = model.trainable_variables[0], []

    def record(*_: Any) -> None:
        getattr(fitted, "jax_state_sync", lambda: None)()
        seen.append(np.array(ops.convert_to_numpy(kernel)))

    watch = keras.callbacks.LambdaCallback(on_epoch_end=record)
    history = fit(fitted, x, y, epochs=6, callbacks=[watch]).history
    assert history["accuracy"][-1] > history["accuracy"][0] + 0.2
    average = seen[0]
    for value in seen[1:]:
        average = 0.5 * average + 0.5 * value
    np.testing.assert_allclose(ops.convert_to_numpy(kernel), average, rtol=1e-5, atol=1e-6)
    assert np.abs(seen[-1] - average).max() > 1e-3
    calibrate(model, x, batch_norm=True)
    assert (model.predict(x, verbose=0).argmax(-1) == y).mean() > 0.4


def test_training_stops_when_robust_accuracy_no_longer_rises(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, y = batch(16)
    measured = iter([0.2, 0.5, 0.4, 0.5, 0.9])
    kept = []

    class Told(Keras3OverfittingMonitor):
        def accuracy(self, attack: str, steps: int) -> float:
            if attack != "pgd":
                return 0.5
            kept.append(self.model.model.get_weights()[0])
            return next(measured)

    fitted = trainer(dense(), "fgsm", EPS)
    fit(fitted, x, y, epochs=9, callbacks=[Told(x, y, patience=2, queries=0)])
    assert len(kept) == 4
    np.testing.assert_array_equal(fitted.model.get_weights()[0], kept[1])


def test_early_stopping_and_averaged_weights_exclude_each_other() -> None:
    x, y = batch(8)
    fitted = trainer(dense(), "fgsm", EPS)
    averaged = keras.optimizers.SGD(RATE, use_ema=True)
    for optimizer in (averaged, keras.optimizers.LossScaleOptimizer(averaged)):
        fitted.compile(optimizer, LOSS)
        with pytest.raises(ValueError, match=r"patience=2 puts back.*use_ema=True.*leave out"):
            fit(fitted, x, y, callbacks=[Keras3OverfittingMonitor(x, y, patience=2)])


def test_the_warning_names_the_attack_that_was_measured() -> None:
    class Told(Keras3OverfittingMonitor):
        def accuracy(self, attack: str, steps: int) -> float:
            return 0.05 if attack == "pgd" else 0.9

    x, y = batch(8)
    for attack, words in (
        ("free", r"90\.0% under r\+fgsm, while it trains with free, but 5\.0% under PGD-20"),
        ("fgsm", r"90\.0% under fgsm, which it trains with, but 5\.0% under PGD-20"),
    ):
        monitor = Told(x, y)
        monitor.set_model(trainer(dense(), attack, EPS))
        with pytest.warns(CatastrophicOverfittingWarning, match=words):
            monitor.on_epoch_end(0)
        assert monitor.model.catastrophic_overfitting == (0,)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"objective": "madry"}, "objective must be one of"),
        ({"trade_off": 6.0}, "trade_off is the weight of what"),
        ({"objective": "trades", "trade_off": 0.0}, "trade_off must be positive"),
        ({"objective": "trades", "ratio": 0.5}, "leave ratio out"),
        ({"objective": "mart", "attack": "free"}, "descends the loss that it ascends"),
        ({"objective": "trades", "attack": "fgsm"}, "would not move"),
        ({"attack": "free", "ratio": 0.5}, "'free' perturbs the whole batch"),
        ({"warmup_steps": -1}, "warmup_steps must be"),
    ],
)
def test_what_does_not_go_together_is_named(options: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tfdq.AdversarialTraining(dense(), **options)


def test_losses_and_data_that_cannot_be_used_are_named() -> None:
    fitted = tfdq.AdversarialTraining(dense(), "pgd", objective="trades")
    with pytest.raises(ValueError, match="cross-entropy of logits"):
        fitted.compile("sgd", keras.losses.SparseCategoricalCrossentropy())
    with pytest.raises(ValueError, match="size of a batch, but generator"):
        trainer(dense(), "free").fit(batch(8) for _ in range(2))
    with pytest.raises(ValueError, match="patience must be"):
        Keras3OverfittingMonitor(*batch(8), patience=0)


@pytest.mark.parametrize(
    "options", [{"attack": "n-fgsm"}, {"objective": "trades"}, {"warmup_steps": 9}]
)
def test_tf_keras_models_are_sent_to_keras_3(options: Any) -> None:
    inputs = tf_keras.Input((4,))
    model = tf_keras.Model(inputs, tf_keras.layers.Dense(2)(inputs))
    name, value = next(iter(options.items()))
    with pytest.raises(ValueError, match=rf"{name}={value!r} is for Keras 3.*to_keras3"):
        tfdq.AdversarialTraining(model, **options)


def test_settings_are_saved() -> None:
    fitted = trainer(dense(), "pgd", EPS, objective="mart", trade_off=3.0, warmup_steps=7)
    again = Keras3AdversarialTraining.from_config(fitted.get_config())
    assert again.get_config() == fitted.get_config()
    assert (again.objective, again.trade_off, again.warmup_steps) == ("mart", 3.0, 7)
