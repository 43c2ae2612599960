"""Adversarial training of Keras 3 models on each backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import tfdq
from tests.tflite_export.trained import digits
from tfdq.keras3 import quantize_model
from tfdq.robustness import run_attack
from tfdq.robustness.keras3_adversarial_training import Keras3AdversarialTraining

L = keras.layers
pytestmark = pytest.mark.backends
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def dense() -> keras.Model:
    return keras.Sequential([L.Input((8, 8, 1)), L.Flatten(), L.Dense(10)])


def small_network() -> keras.Model:
    image = keras.Input((8, 8, 1))
    x = L.ReLU()(L.BatchNormalization(momentum=0.9)(L.Conv2D(12, 3, use_bias=False)(image)))
    return keras.Model(image, L.Dense(10)(L.Flatten()(x)))


def trainer(model: keras.Model, *args: Any, **options: Any) -> Keras3AdversarialTraining:
    found = tfdq.AdversarialTraining(model, *args, **options)
    assert type(found) is Keras3AdversarialTraining
    found.compile(keras.optimizers.SGD(0.1), LOSS)
    return found


def by_hand(model: keras.Model, x: np.ndarray, y: np.ndarray, size: float) -> np.ndarray:
    """A step of FGSM on a dense layer, whose gradient is W (p - y), in float64."""
    kernel, bias = (w.astype(np.float64) for w in model.get_weights())
    logits = x.reshape(len(x), -1) @ kernel + bias
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    slope = (shares - np.eye(10)[y]) @ kernel.T
    return x + size * np.sign(slope).reshape(x.shape)


def numpy(tensor: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def test_a_step_is_one_on_the_perturbed_batch() -> None:
    """Half of the batch by FGSM; the rest, and the step on both, is plain training."""
    x, y = (part[:16] for part in digits())
    keras.utils.set_random_seed(1)
    model = dense()
    moved = np.concatenate([np.clip(by_hand(model, x[:8], y[:8], 0.1), 0, 1), x[8:]])
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    twin.compile(keras.optimizers.SGD(0.1), LOSS)
    twin.fit(moved.astype(np.float32), y, batch_size=16, verbose=0, shuffle=False)
    fitted = trainer(model, "fgsm", 0.1)
    fitted.fit(x, y, batch_size=16, verbose=0, shuffle=False, validation_data=(x, y))
    for ours, theirs in zip(model.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("attack", ["r+fgsm", "pgd"])
def test_examples_lie_in_the_ball_and_raise_the_loss(attack: str) -> None:
    x, y = (part[:32] for part in digits())
    keras.utils.set_random_seed(1)
    fitted = trainer(dense(), attack, 0.1, steps=3)
    given = keras.ops.convert_to_tensor(x)
    found = numpy(fitted.perturb(given, keras.ops.convert_to_tensor(y)))
    assert np.abs(found - x).max() <= 0.1 + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1
    before, after = (float(numpy(LOSS(y, fitted.model(images)))) for images in (given, found))
    assert after > before + 0.05
    again = numpy(fitted.perturb(given, keras.ops.convert_to_tensor(y)))
    assert (again != found).any()  # another start
    seeded = [numpy(fitted.perturb(given, keras.ops.convert_to_tensor(y), seed=3)) for _ in "ab"]
    np.testing.assert_array_equal(*seeded)


def test_the_attack_leaves_statistics_and_ranges_alone() -> None:
    x, y = (keras.ops.convert_to_tensor(part[:32]) for part in digits())
    model = quantize_model(small_network(), activation_bits=4, input_range=(0, 1))
    model(x, training=True)
    fitted = trainer(model, "pgd", 0.1, steps=2)
    before = [numpy(variable).copy() for variable in model.variables]
    fitted.perturb(x, y)
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(numpy(variable), value, err_msg=variable.path)


def test_a_quantized_network_becomes_robust_and_ships(tmp_path: Path) -> None:
    x, y = digits()
    held, wanted = x[:128], y[:128]
    robust = {}
    for attack in ("none", "pgd"):
        keras.utils.set_random_seed(0)
        model = quantize_model(small_network(), 0.0, activation_bits=4, input_range=(0, 1))
        fitted: Any = model
        if attack != "none":
            fitted = tfdq.AdversarialTraining(model, attack, 0.1, ratio=1.0, steps=3)
        fitted.compile(keras.optimizers.Adam(3e-3), LOSS, metrics=["accuracy"])
        history = fitted.fit(
            x[256:], y[256:], epochs=5, verbose=0, validation_data=(held, wanted)
        ).history
        assert np.isfinite(history["val_loss"]).all()
        assert history["val_accuracy"][-1] > 0.8
        robust[attack] = run_attack("pgd", model, held, wanted, 0.1).robust_accuracy
    assert robust["pgd"] > robust["none"] + 0.1
    fitted.save(tmp_path / "robust.keras")
    again = keras.saving.load_model(tmp_path / "robust.keras")
    np.testing.assert_array_equal(again.predict(held, verbose=0), model.predict(held, verbose=0))


def test_every_way_to_infer_through_the_trainer_seals() -> None:
    x, y = (part[:16] for part in digits())
    training = trainer(quantize_model(small_network(), 0.0), attack="fgsm", eps=0.05)
    training.train_on_batch(x, y)
    found = training.predict_on_batch(x)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found, training.model.predict(x, verbose=0))
    training.train_on_batch(x, y)
    assert np.isfinite(training.test_on_batch(x, y))


def test_single_step_training_is_watched() -> None:
    x, y = (part[:128] for part in digits())
    keras.utils.set_random_seed(0)
    fitted = trainer(dense(), "fgsm", 0.1)
    history = fitted.fit(x, y, epochs=2, verbose=0).history
    # One step by hand on the trained network.
    kernel, bias = fitted.model.get_weights()
    moved = np.clip(by_hand(fitted.model, x, y, 0.1), 0, 1).reshape(len(x), -1)
    wanted = np.mean((moved @ kernel + bias).argmax(-1) == y)
    assert abs(history["monitor_single_step_accuracy"][-1] - wanted) < 0.02
    # On a linear model no attack is much stronger than another.
    assert abs(history["monitor_pgd_accuracy"][-1] - wanted) < 0.1
    assert fitted.catastrophic_overfitting == ()
    assert fitted.gradient_masking is False


def test_the_same_seed_gives_the_same_training() -> None:
    x, y = (part[:64] for part in digits())
    weights = []
    for seed in (0, 0, 1):
        keras.utils.set_random_seed(0)
        fitted = trainer(dense(), "pgd", 0.1, steps=2, seed=seed)
        fitted.fit(x, y, epochs=2, verbose=0)
        weights.append(fitted.model.get_weights()[0])
    np.testing.assert_array_equal(weights[0], weights[1])
    assert (weights[0] != weights[2]).any()


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="attack must be one of"):
        tfdq.AdversarialTraining(dense(), "cw")
    with pytest.raises(RuntimeError, match="compile the trainer first"):
        tfdq.AdversarialTraining(dense()).perturb(None, None)
    with pytest.raises(ValueError, match="needs one loss"):
        tfdq.AdversarialTraining(dense()).compile("sgd")
