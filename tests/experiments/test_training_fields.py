"""What a recipe says of a training, next to NumPy: one-cycle rates, smoothed labels, cut-out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfdq
from tfdq.data import Dataset
from tfdq.experiments import keras3_training, training
from tfdq.experiments.estimate import _network_key, _title
from tfdq.experiments.job import Assignment
from tfdq.experiments.keras3_checkpoints import from_bfloat16, to_bfloat16
from tfdq.experiments.keras3_job import Keras3Job
from tfdq.experiments.keras3_training import compile_for
from tfdq.experiments.label_smoothing import SmoothedCrossentropy
from tfdq.experiments.machines import Machines
from tfdq.experiments.recipe import Variant
from tfdq.experiments.runner import Unit
from tfdq.experiments.schedules import make_optimizer
from tfdq.experiments.settings import RunSettings, TrainingSettings
from tfdq.experiments.strategy import training_batches

ALONE = Machines(None, "one_device")
RATE, SHARE = 0.1, 0.2


@pytest.mark.parametrize("epochs", [2, 3])
@pytest.mark.parametrize("core", [keras, tf_keras])
def test_one_cycle_goes_up_a_line_and_down_another(core: Any, epochs: int) -> None:
    given = TrainingSettings(schedule="one-cycle", learning_rate=0.4, epochs=epochs)
    own = (keras3_training if core is keras else training).SCHEDULES
    optimizer = make_optimizer(core, own, given, steps=5)
    rates = [float(optimizer._learning_rate(step)) for step in range(5 * epochs)]
    # 0 just before the first step and just after the last, the rate in the middle.
    ends, middle = [-1, 5 * epochs], [(5 * epochs - 1) // 2, 5 * epochs // 2]
    places = [ends[0], *sorted(set(middle)), ends[1]]
    wanted = np.interp(range(5 * epochs), places, [0, *[0.4] * len(set(middle)), 0])
    np.testing.assert_allclose(rates, wanted, rtol=1e-6)
    assert float(optimizer._learning_rate(5 * epochs + 1)) == 0
    again = own.one_cycle(0.4, 5 * epochs)
    assert type(again).from_config(again.get_config())(3) == again(3)


@pytest.mark.parametrize("attack", ["free", "fgsm"])
def test_the_rate_falls_to_the_end_of_an_adversarial_training(
    attack: str, dense: keras.Model, batch: Any
) -> None:
    """The rate after the last update is 0, and it was above 0 until then."""
    given = TrainingSettings(schedule="one-cycle", learning_rate=RATE, epochs=2)
    ratio = None if attack == "free" else 1.0
    trainer = tfdq.AdversarialTraining(dense, attack, 0.1, ratio, steps=3)
    compile_for(trainer, given, steps=2)
    rates = trainer.optimizer._learning_rate
    for _ in range(2 * 2):
        at = int(trainer.optimizer.iterations)
        assert float(rates(at)) > 0
        trainer.train_on_batch(*batch)
    done = int(trainer.optimizer.iterations)
    assert done == rates.steps == (12 if attack == "free" else 4)


def test_free_trainings_whose_rate_fell_too_early_are_not_taken_for_others() -> None:
    settings = RunSettings().changed({"training.backend": "jax", "adversarial.attack": "free"})
    assert settings.trained()["adversarial"]["rate_by"] == "updates"
    other = settings.changed({"adversarial.attack": "pgd"})
    assert "rate_by" not in other.trained()["adversarial"]


def test_an_estimate_tells_adversarial_trainings_apart() -> None:
    """A step on half of each batch from one on all of it, TRADES from training against PGD."""
    whole = {"training.backend": "jax", "adversarial.attack": "pgd", "adversarial.ratio": 1.0}
    half, trades = {"adversarial.ratio": 0.5}, {"adversarial.objective": "trades"}
    given = [RunSettings().changed({**whole, **more}) for more in ({}, half, trades)]
    assert len({_network_key(settings) for settings in given}) == 3
    titles = [_title(Unit(Variant("a", "a", {}, settings), 0)) for settings in given]
    assert ", pgd training" in titles[0]
    assert "TRADES" not in titles[0]
    assert "TRADES, pgd training" in titles[2]


def test_one_cycle_has_no_other_warm_up() -> None:
    with pytest.raises(ValueError, match=r"one-cycle rises by itself: leave out warmup_epochs = 1"):
        TrainingSettings(schedule="one-cycle", warmup_epochs=1.0)


def logits(weights: list[np.ndarray], x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) @ weights[0] + weights[1]


def stepped(weights: list[np.ndarray], x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """The weights of a dense layer after a step of SGD down the cross-entropy of smooth labels."""
    scores = logits(weights, x)
    shares = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    off = (shares - (1 - SHARE) * np.eye(3)[y] - SHARE / 3) / len(x)
    return [weights[0] - RATE * x.T @ off, weights[1] - RATE * off.sum(0)]


@pytest.fixture
def dense() -> keras.Model:
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(3)])


@pytest.fixture
def batch() -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    return draw.random((16, 4), np.float32), draw.integers(0, 3, 16)


def test_a_step_with_smoothed_labels(dense: keras.Model, batch: Any) -> None:
    x, y = batch
    wanted = stepped(dense.get_weights(), x, y)
    given = TrainingSettings(
        optimizer="sgd",
        momentum=0.0,
        learning_rate=RATE,
        schedule="constant",
        label_smoothing=SHARE,
    )
    compile_for(dense, given, 1)
    dense.train_on_batch(x, y)
    for found, weight in zip(dense.get_weights(), wanted, strict=True):
        np.testing.assert_allclose(found, weight, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("form", ["numbers", "one-hot"])
def test_adversarial_training_climbs_the_loss_of_smoothed_labels(
    form: str, dense: keras.Model, batch: Any
) -> None:
    """One step of FGSM against it, then one of SGD; Keras' own loss where labels are one-hot."""
    x, y = batch
    loss: Any = SmoothedCrossentropy(SHARE)
    labels = y
    if form == "one-hot":
        loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=SHARE)
        labels = np.eye(3, dtype=np.float32)[y]
    trainer = tfdq.AdversarialTraining(dense, "fgsm", 0.1, 1.0)
    trainer.compile(keras.optimizers.SGD(RATE), loss)
    weights = dense.get_weights()
    scores = logits(weights, x)
    shares = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    slope = (shares - (1 - SHARE) * np.eye(3)[y] - SHARE / 3) @ weights[0].T
    moved = np.clip(x + np.float32(0.1) * np.sign(slope), 0.0, 1.0)
    trainer.train_on_batch(x, labels)
    for found, weight in zip(dense.get_weights(), stepped(weights, moved, y), strict=True):
        np.testing.assert_allclose(found, weight, rtol=1e-5, atol=1e-6)


def test_compact_checkpoints_shorten_what_the_optimizer_keeps(tmp_path: Path) -> None:
    """Momentum and average within half a step of bfloat16, the weights as they are."""
    images, labels = np.zeros((40, 8, 8, 1), np.uint8), np.arange(40) % 2
    dataset = Dataset(images, labels, images, labels, 2, "black", "made up")
    changes = {"training.backend": "tensorflow", "training.average": 0.9, "training.batch_size": 20}
    sizes, jobs = {}, {}
    for precision in ("float32", "bfloat16"):
        settings = RunSettings().changed({**changes, "training.checkpoint_precision": precision})
        assert settings.training_key(0) == RunSettings().changed(changes).training_key(0)
        folder = tmp_path / precision
        job = Keras3Job(Assignment(settings, 0, dataset, folder, ALONE, print, trust=False))
        draw = np.random.default_rng(1)
        for variable in job._state():
            if keras.backend.is_float_dtype(variable.dtype):
                variable.assign(draw.normal(size=variable.shape).astype(np.float32))
        job.save(1)
        (file,) = (folder / "checkpoints").iterdir()
        sizes[precision], jobs[precision] = file.stat().st_size, job
    compact = jobs["bfloat16"]
    saved = [keras.ops.convert_to_numpy(variable) for variable in compact._state()]
    for variable in compact._state():
        variable.assign(np.zeros(variable.shape))
    compact.restore()
    ours = {id(variable) for variable in compact.fitted.variables}
    for variable, before in zip(compact._state(), saved, strict=True):
        near = 0.0 if id(variable) in ours or not before.ndim else 2.0**-8
        found = keras.ops.convert_to_numpy(variable)
        np.testing.assert_allclose(found, before, rtol=near, atol=0)
    weights = 4 * sum(int(np.prod(w.shape)) for w in compact.model.trainable_weights)
    # Of Adam two moments and the average: three of the float32 form's four parts are halved.
    assert sizes["float32"] - sizes["bfloat16"] == pytest.approx(3 * weights / 2, rel=0.1)


@pytest.mark.parametrize("value", [1.0, -3.140625, 1.0 + 2.0**-8, 1.0 + 3 * 2.0**-8, 1e-30, 0.1])
def test_bfloat16_is_tensorflows(value: float) -> None:
    one = np.array([value], np.float32)
    wanted = tf.cast(tf.cast(one, tf.bfloat16), tf.float32).numpy()
    np.testing.assert_array_equal(from_bfloat16(to_bfloat16(one)), wanted)


def test_both_kinds_of_runs_cut_squares_out(tmp_path: Path) -> None:
    white, labels = np.full((40, 8, 8, 1), 255, np.uint8), np.arange(40) % 2
    dataset = Dataset(white, labels, white, labels, 2, "white", "made up")
    settings = RunSettings().changed(
        {"training.backend": "tensorflow", "training.cutout": 3, "training.batch_size": 20}
    )
    job = Keras3Job(Assignment(settings, 0, dataset, tmp_path, ALONE, print, trust=False))
    tf_keras_batches = training_batches(settings.training, dataset, 0, 0, ALONE)
    for images in (job.batches[0][0], next(iter(tf_keras_batches))[0].numpy()):
        black = (images == 0).sum((1, 2, 3))
        assert set(black) <= {4, 6, 9}
        assert black.max() == 9
