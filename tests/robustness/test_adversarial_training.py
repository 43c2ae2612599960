"""Adversarial training: its attacks against NumPy and CleverHans, and its manners in Keras."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfdq
from tfdq.robustness import (
    AdversarialTraining,
    CatastrophicOverfittingMonitor,
    CatastrophicOverfittingWarning,
    GradientMaskingWarning,
    run_attack,
)

LOSS = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
SEED = tf.constant([0, 0], tf.int32)


def trainer_of(model: Any, **settings: Any) -> AdversarialTraining:
    trainer = AdversarialTraining(model, **{"eps": 0.1, **settings})
    trainer.compile(tf_keras.optimizers.Adam(3e-3), LOSS, metrics=["accuracy"])
    return trainer


def numpy_gradient(model: Any, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The gradient of the cross-entropy, via the softmax's closed form and a vector-Jacobian."""
    images = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(images)
        logits = model(images, training=False)
    shifted = np.exp(logits.numpy() - logits.numpy().max(1, keepdims=True))
    upstream = shifted / shifted.sum(1, keepdims=True) - np.eye(10)[y]
    return tape.gradient(logits, images, tf.constant(upstream, tf.float32)).numpy()


def test_fgsm_is_one_signed_step(float_model: Any, digits: Any) -> None:
    x, y = digits.x_test[:64], digits.y_test[:64]
    ours = trainer_of(float_model, attack="fgsm").perturb(x, y, SEED).numpy()
    gradient = numpy_gradient(float_model, x, y)
    wanted = np.clip(x + 0.1 * np.sign(gradient), 0, 1)
    sure = np.abs(gradient) > 1e-7
    np.testing.assert_allclose(ours[sure], wanted[sure], atol=1e-6)


def test_fgsm_equals_cleverhans(float_model: Any, digits: Any) -> None:
    from cleverhans.tf2.attacks.fast_gradient_method import fast_gradient_method

    x, y = digits.x_test[:64], digits.y_test[:64]
    ours = trainer_of(float_model, attack="fgsm").perturb(x, y, SEED).numpy()
    theirs = fast_gradient_method(
        lambda images: float_model(images, training=False),
        tf.constant(x), 0.1, np.inf, clip_min=0.0, clip_max=1.0, y=y, sanity_checks=False,
    ).numpy()  # fmt: skip
    assert np.mean(np.abs(ours - theirs) > 1e-5) < 1e-3


def test_r_fgsm_is_a_random_half_then_a_signed_half(float_model: Any, digits: Any) -> None:
    x, y = digits.x_test[:32], digits.y_test[:32]
    ours = trainer_of(float_model, attack="r+fgsm").perturb(x, y, SEED).numpy()
    noise = tf.random.stateless_normal(x.shape, SEED).numpy()
    start = np.clip(x + np.float32(0.05) * np.sign(noise), 0, 1)
    gradient = numpy_gradient(float_model, start, y)
    wanted = np.clip(np.clip(start + 0.05 * np.sign(gradient), x - 0.1, x + 0.1), 0, 1)
    sure = np.abs(gradient) > 1e-6
    np.testing.assert_allclose(ours[sure], wanted[sure], atol=1e-6)


@pytest.mark.parametrize("attack", ["fgsm", "r+fgsm", "pgd"])
def test_inside_the_ball_and_the_clip(attack: str, float_model: Any, digits: Any) -> None:
    x, y = digits.x_test[:64], digits.y_test[:64]
    moved = trainer_of(float_model, attack=attack).perturb(x, y, SEED).numpy()
    assert np.abs(moved - x).max() <= 0.1 + 1e-6
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert np.abs(moved - x).mean() > 0.02


def test_pgd_is_about_as_strong_as_the_evaluation_s(float_model: Any, digits: Any) -> None:
    x, y = digits.x_test[:200], digits.y_test[:200]
    trainer = trainer_of(float_model, attack="pgd", steps=20)
    moved = trainer.perturb(tf.constant(x), tf.constant(y), SEED).numpy()
    ours = np.mean(float_model(moved).numpy().argmax(1) == y)
    theirs = run_attack("pgd", float_model, x, y, 0.1, steps=20).robust_accuracy
    assert abs(ours - theirs) <= 0.05


@pytest.mark.parametrize("attack", ["r+fgsm", "pgd"])
def test_training_makes_it_robust(
    build_network: Any, attack: str, float_model: Any, digits: Any
) -> None:
    model = build_network(seed=3)
    trainer = trainer_of(model, attack=attack)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CatastrophicOverfittingWarning)
        warnings.simplefilter("error", GradientMaskingWarning)
        history = trainer.fit(digits.x_train, digits.y_train, batch_size=64, epochs=8, verbose=0)
    plain = run_attack("pgd", float_model, digits.x_test[:300], digits.y_test[:300], 0.1)
    ours = run_attack("pgd", model, digits.x_test[:300], digits.y_test[:300], 0.1)
    assert ours.robust_accuracy > plain.robust_accuracy + 0.1
    assert {"clean_accuracy", "adversarial_accuracy", "accuracy", "loss"} <= set(history.history)
    assert history.history["clean_accuracy"][-1] > history.history["adversarial_accuracy"][-1]
    assert trainer.catastrophic_overfitting == ()
    # Trained with PGD it is not watched.
    assert trainer.gradient_masking is (None if attack == "pgd" else False)


def test_the_attack_leaves_statistics_and_ranges_alone(digits: Any, float_model: Any) -> None:
    model = tfdq.quantize_model(
        float_model, lipschitz_beta=2e-3, activation_bits=4, activation_range="moving_average"
    )
    model(digits.x_train[:64], training=True)
    before = [w.copy() for w in model.get_weights()]
    trainer_of(model, attack="pgd").perturb(
        tf.constant(digits.x_test[:32]), tf.constant(digits.y_test[:32]), SEED
    )
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_with_quantization_and_penalty(digits: Any, float_model: Any) -> None:
    model = tfdq.quantize_model(
        float_model, lipschitz_beta=2e-3, activation_bits=4, input_range=(0, 1)
    )
    trainer = trainer_of(model, attack="r+fgsm")
    history = trainer.fit(digits.x_train[:640], digits.y_train[:640], epochs=2, verbose=0)
    penalty = float(tf.add_n(model.losses))
    assert penalty > 0
    assert float(tf.add_n(trainer.losses)) == pytest.approx(penalty)
    assert history.history["loss"][-1] > penalty * 0.5


def test_a_penalty_is_counted_once(digits: Any) -> None:
    """The loss of one step, by hand: mixed-batch cross-entropy plus the regularizer."""
    x, y = digits.x_train[:32], digits.y_train[:32]
    image = tf_keras.Input((8, 8, 1))
    flat = tf_keras.layers.Flatten()(image)
    dense = tf_keras.layers.Dense(10, kernel_regularizer=tf_keras.regularizers.L2(0.1))
    model = tf_keras.Model(image, dense(flat))
    trainer = AdversarialTraining(model, attack="fgsm", eps=0.1, ratio=0.25)
    trainer.compile(tf_keras.optimizers.SGD(0.0), LOSS)
    moved = trainer.perturb(tf.constant(x[:8]), tf.constant(y[:8]), SEED).numpy()
    mixed = np.concatenate([moved, x[8:]])
    logits = model(mixed).numpy().astype(np.float64)
    logits -= logits.max(1, keepdims=True)
    cross_entropy = np.log(np.exp(logits).sum(1)) - logits[np.arange(32), y]
    wanted = cross_entropy.mean() + 0.1 * np.sum(dense.kernel.numpy() ** 2)
    assert trainer.train_on_batch(x, y, return_dict=True)["loss"] == pytest.approx(wanted, rel=1e-4)


def test_compiled_by_xla_it_learns_the_same(build_network: Any, digits: Any) -> None:
    results = []
    for jit in (False, True):
        model = build_network(seed=5)
        # XLA draws other normal numbers from the same seed; FGSM draws none.
        trainer = AdversarialTraining(model, attack="fgsm", eps=0.1, ratio=0.3)
        trainer.compile(tf_keras.optimizers.SGD(0.05), LOSS, jit_compile=jit)
        batches = [(digits.x_train[:64], digits.y_train[:64])] * 2
        results.append([trainer.train_on_batch(*b, return_dict=True)["loss"] for b in batches])
    np.testing.assert_allclose(results[0], results[1], rtol=2e-3)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy: str, digits: Any) -> None:
    before = tf_keras.mixed_precision.global_policy()
    tf_keras.mixed_precision.set_global_policy(policy)
    try:
        half = tf_keras.Sequential([tf_keras.layers.Flatten(), tf_keras.layers.Dense(10)])
        half(digits.x_test[:1])
        trainer = trainer_of(half, attack="r+fgsm")
        history = trainer.fit(digits.x_train[:256], digits.y_train[:256], epochs=3, verbose=0)
    finally:
        tf_keras.mixed_precision.set_global_policy(before)
    assert half(digits.x_test[:1]).dtype in (tf.float16, tf.bfloat16)
    assert history.history["loss"][-1] < history.history["loss"][0]
    moved = trainer.perturb(digits.x_test[:64], digits.y_test[:64], SEED).numpy()
    assert moved.dtype == np.float32
    assert np.isfinite(moved).all()
    kernel = half.layers[1].kernel.numpy()
    # One dense layer: the sign of the gradient is known without half precision.
    plain = trainer.perturb(digits.x_test[:64], digits.y_test[:64], SEED, "fgsm").numpy()
    logits = digits.x_test[:64].reshape(64, -1) @ kernel + half.layers[1].bias.numpy()
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    gradient = ((shares - np.eye(10)[digits.y_test[:64]]) @ kernel.T).reshape(64, 8, 8, 1)
    wanted = np.clip(digits.x_test[:64] + 0.1 * np.sign(gradient), 0, 1)
    assert np.mean(np.abs(plain - wanted) > 1e-5) < 0.03


def test_same_seed_same_weights(build_network: Any, digits: Any) -> None:
    ends = []
    for _ in range(2):
        model = build_network(seed=5)
        trainer_of(model).fit(
            digits.x_train[:320], digits.y_train[:320], epochs=2, shuffle=False, verbose=0
        )
        ends.append(model.get_weights())
    for one, two in zip(*ends, strict=True):
        np.testing.assert_array_equal(one, two)


def test_two_replicas_compute_what_one_device_does() -> None:
    script = Path(__file__).parent / "mirrored_adversarial_training.py"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["replicas"] == 2
    assert result["largest_change"] > 0.1
    assert result["loss"] < 1e-5
    assert result["accuracy"] < 1e-6
    assert result["change"] < 1e-4
    assert np.isfinite(result["random_start_loss"])
    assert result["monitored"]


@pytest.mark.parametrize("form", ["one_hot", "column", "weighted", "uint8"])
def test_forms_of_data(build_network: Any, form: str, digits: Any) -> None:
    x, y = digits.x_train[:128], digits.y_train[:128]
    model = build_network(seed=7)
    top = 255.0 if form == "uint8" else 1.0
    trainer = AdversarialTraining(model, eps=0.1 * top, clip=(0.0, top), ratio=1.0)
    loss: Any = LOSS
    data: tuple[Any, ...] = (x, y)
    if form == "one_hot":
        loss = tf_keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
        data = (x, np.eye(10, dtype=np.float32)[y])
    elif form == "column":
        data = (x, y[:, None])
    elif form == "weighted":
        data = (x, y, np.ones(128, np.float32))
    else:
        data = ((x * 255).astype(np.uint8), y)
    trainer.compile("sgd", loss)
    history = trainer.fit(tf.data.Dataset.from_tensor_slices(data).batch(32), verbose=0)
    assert np.isfinite(history.history["loss"][-1])
    assert "clean_accuracy" not in history.history
    assert history.history["adversarial_accuracy"][-1] <= 1


def test_saves_the_trained_model(build_network: Any, digits: Any, tmp_path: Path) -> None:
    model = build_network(seed=8)
    trainer = trainer_of(model)
    checkpoint = tf_keras.callbacks.ModelCheckpoint(str(tmp_path / "best.keras"))
    trainer.fit(digits.x_train[:128], digits.y_train[:128], callbacks=[checkpoint], verbose=0)
    again = tf_keras.models.load_model(tmp_path / "best.keras")
    assert not isinstance(again, AdversarialTraining)
    np.testing.assert_allclose(again(digits.x_test[:5]), model(digits.x_test[:5]), atol=1e-5)
    twin = AdversarialTraining.from_config(trainer.get_config())
    assert (twin.attack, twin.eps, twin.ratio, twin.steps) == ("r+fgsm", 0.1, 0.5, 7)


class Gradientless(tf_keras.Model):
    """Hides its gradient on the data and shows it off the data, as FGSM training may learn to."""

    def __init__(self, inner: Any, anchors: np.ndarray, radius: float = 1e-4) -> None:
        super().__init__()
        self.inner = inner
        flat = tf.constant(anchors.reshape(len(anchors), -1))

        @tf.custom_gradient
        def passing(x: tf.Tensor) -> Any:
            gaps = tf.abs(tf.reshape(x, [tf.shape(x)[0], 1, -1]) - flat[tf.newaxis])
            near = tf.reduce_min(tf.reduce_max(gaps, axis=2), axis=1) < radius
            slope = tf.reshape(tf.where(near, 0.0, 1.0), [-1, 1, 1, 1])
            return tf.identity(x), lambda upstream: upstream * slope

        self.passing = passing

    def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        return self.inner(self.passing(x), training=training)


def test_catastrophic_overfitting_is_seen(float_model: Any, digits: Any) -> None:
    x, y = digits.x_test[:100], digits.y_test[:100]
    masked = Gradientless(float_model, x)
    trainer = AdversarialTraining(masked, attack="fgsm", eps=0.2)
    trainer.compile(tf_keras.optimizers.SGD(0.0), LOSS)
    monitor = CatastrophicOverfittingMonitor(x, y, stop=True)
    with pytest.warns(CatastrophicOverfittingWarning, match="under PGD-20"):
        history = trainer.fit(x, y, epochs=3, callbacks=[monitor], verbose=0)
    assert trainer.catastrophic_overfitting == (0,)
    assert len(history.history["loss"]) == 1
    single = history.history["monitor_single_step_accuracy"][0]
    # The hidden gradient makes FGSM do nothing at all: its accuracy is the clean one.
    clean = np.mean(float_model(x).numpy().argmax(1) == y)
    assert single == pytest.approx(clean, abs=1e-6)
    assert history.history["monitor_pgd_accuracy"][0] < 0.5 * single


def test_hidden_gradients_are_seen_by_a_random_search(float_model: Any, digits: Any) -> None:
    """Where the gradient vanishes everywhere, PGD breaks little and no step parts from it."""
    x, y = digits.x_test[:100], digits.y_test[:100]
    masked = Gradientless(float_model, x, radius=2.0)
    trainer = AdversarialTraining(masked, eps=0.2)
    trainer.compile(tf_keras.optimizers.SGD(0.0), LOSS)
    with pytest.warns(GradientMaskingWarning, match=r"queries of Square") as caught:
        history = trainer.fit(x, y, epochs=1, verbose=0)
    assert trainer.gradient_masking is True
    assert trainer.catastrophic_overfitting == ()
    # The honest network behind the mask, under an attack that has its gradients.
    broken = run_attack("pgd", float_model, x, y, 0.2, steps=20)
    assert history.history["monitor_pgd_accuracy"][0] > broken.robust_accuracy + 0.2
    search = run_attack("square", float_model, x, y, 0.2, queries=300, batch_size=128)
    assert f"{search.robust_accuracy:.1%} under 300 queries" in str(caught[0].message)


@pytest.mark.parametrize("form", ["softmax", "one-hot", "single output", "diverged"])
def test_the_random_search_takes_what_training_takes(
    form: str, float_model: Any, digits: Any
) -> None:
    x, y = digits.x_test[:32], digits.y_test[:32]
    # A copy: gradients that are not numbers spoil the weights at any learning rate.
    network = tf_keras.models.clone_model(float_model)
    network.set_weights(float_model.get_weights())
    outputs = network.output
    loss: Any = LOSS
    if form == "softmax":
        outputs = tf_keras.layers.Lambda(tf.nn.softmax)(outputs)  # not one that is taken off
        loss = "sparse_categorical_crossentropy"
    elif form == "one-hot":
        y = tf_keras.utils.to_categorical(y, 10)
        loss = tf_keras.losses.CategoricalCrossentropy(from_logits=True)
    elif form == "single output":
        outputs = tf_keras.layers.Lambda(lambda scores: scores[:, :1])(outputs)
        y, loss = (y == 0).astype(np.float32), tf_keras.losses.BinaryCrossentropy(from_logits=True)
    else:
        outputs = tf_keras.layers.Lambda(lambda scores: scores * np.nan)(outputs)
    trainer = AdversarialTraining(tf_keras.Model(network.input, outputs), eps=0.1)
    trainer.compile(tf_keras.optimizers.SGD(0.0), loss)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CatastrophicOverfittingWarning)
        trainer.fit(x, y, verbose=0)
    expected = None if form in ("single output", "diverged") else False
    assert trainer.gradient_masking is expected


def test_generators_are_not_used_up(build_network: Any, digits: Any) -> None:
    drawn = []

    def batches() -> Any:
        for at in range(0, 64, 32):
            drawn.append(at)
            yield digits.x_train[at : at + 32], digits.y_train[at : at + 32]

    with pytest.warns(CatastrophicOverfittingWarning, match="not watched"):
        trainer_of(build_network(seed=9)).fit(batches(), steps_per_epoch=2, verbose=0)
    assert drawn == [0, 32]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attack": "bim"}, "attack must be one of"),
        ({"eps": 0}, "eps is in input units"),
        ({"eps": 8}, "eps is in input units"),
        ({"ratio": 0}, "ratio is the share"),
        ({"ratio": 1.5}, "ratio is the share"),
        ({"clip": (1, 0)}, "clip must be"),
        ({"steps": 0}, "steps must be"),
        ({"step_size": -1}, "step_size must be"),
    ],
)
def test_bad_settings_are_named(build_network: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdversarialTraining(build_network(seed=0), **settings)


def test_bad_use_is_named(build_network: Any, digits: Any) -> None:
    with pytest.raises(TypeError, match="a tf_keras or Keras 3 model"):
        AdversarialTraining(lambda x: x)  # type: ignore[arg-type]
    trainer = AdversarialTraining(build_network(seed=0))
    with pytest.raises(ValueError, match="one loss"):
        trainer.compile("sgd")
    with pytest.raises(RuntimeError, match="compile the trainer first"):
        trainer.perturb(tf.constant(digits.x_test[:2]), tf.constant(digits.y_test[:2]), SEED)


@pytest.mark.parametrize("attack", ["n-fgsm", "free", "nfgsm"])
def test_attacks_that_it_has_not_are_refused(float_model, digits, attack):
    trainer = trainer_of(float_model, attack="pgd")
    with pytest.raises(ValueError, match=rf"attack must be one of .*'pgd'.*got '{attack}'"):
        trainer.perturb(digits.x_test[:2], digits.y_test[:2], SEED, attack)


class StubTrainer:
    """As much of a trainer as the monitor talks to."""

    attack = "fgsm"
    catastrophic_overfitting: tuple[int, ...] = ()
    stop_training = False
    weights = 0

    def get_weights(self) -> int:
        return self.weights

    def set_weights(self, weights: int) -> None:
        self.weights = weights


@pytest.mark.parametrize(
    ("epochs", "collapses"),
    [
        # single-step and PGD accuracy, epoch by epoch
        ([(0.8, 0.6), (0.9, 0.65), (0.95, 0.2)], (2,)),
        ([(0.54, 0.2), (0.6, 0.25), (0.65, 0.33)], ()),
        ([(0.9, 0.05)], (0,)),
        ([(0.8, 0.6), (0.45, 0.25)], ()),
    ],
)
def test_what_counts_as_a_collapse(
    epochs: list[tuple[float, float]],
    collapses: tuple[int, ...],
    digits: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monitor = CatastrophicOverfittingMonitor(
        digits.x_test[:4], digits.y_test[:4], stop=True, queries=0
    )
    trainer = StubTrainer()
    monitor.set_model(trainer)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for epoch, accuracies in enumerate(epochs):
            trainer.weights = epoch
            monkeypatch.setattr(
                monitor,
                "accuracy",
                lambda attack, steps, found=accuracies: found[attack == "pgd"],
            )
            monitor.on_epoch_end(epoch)
        monitor.on_train_end()
    assert trainer.catastrophic_overfitting == collapses
    assert trainer.stop_training == bool(collapses)
    assert len(caught) == len(collapses)
    best = max(range(len(epochs)), key=lambda e: epochs[e][1])
    assert trainer.weights == (best if collapses else len(epochs) - 1)
