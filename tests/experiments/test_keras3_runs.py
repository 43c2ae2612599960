"""Runs on Keras 3: what they may ask for, killed ones, and figures of a whole experiment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import keras
import numpy as np
import pytest

import tfdq
from tests.experiments.small_recipe import RECIPE, small_experiment
from tfdq.experiments.estimate import estimate
from tfdq.experiments.keras3_training import compile_for
from tfdq.experiments.measuring import evaluation_images
from tfdq.experiments.networks import load_images
from tfdq.experiments.process import choose_backend
from tfdq.experiments.settings import RunSettings, TrainingSettings

SCRIPT = Path(__file__).with_name("killed_keras3.py")
DEFAULT_KEY = "21fd8e5f9c41"
AUDITED = "set = { evaluation = { audit_images = 8, audit_queries = 10 } }"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment.pop("KERAS_BACKEND", None)
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=300,
    )


@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_killed_and_started_again_the_weights_are_the_same_bit_for_bit(
    backend: str, tmp_path: Path
) -> None:
    if find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    folder, whole = tmp_path / "killed", tmp_path / "whole"
    assert run(backend, folder, "kill", 8).returncode == -signal.SIGKILL
    # Every 3 steps and after each epoch: of 5, or 4 where images are held out.
    older, newest = (4, 7) if backend == "tensorflow" else (3, 5)
    kept = {path.name for path in (folder / "checkpoints").iterdir()}
    assert kept == {f"ckpt-{older}.npz", f"ckpt-{newest}.npz"}
    if backend == "jax":
        # A disk may spoil the newest checkpoint: the older one serves.
        spoilt = folder / "checkpoints" / f"ckpt-{newest}.npz"
        spoilt.write_bytes(spoilt.read_bytes()[:-100])
    done = run(backend, folder, "go-on", whole)
    assert done.returncode == 0, done.stderr[-2000:]
    assert ("going on from" in done.stderr) == (backend == "jax")
    resumed, at_once = json.loads(done.stdout.splitlines()[-1])
    assert resumed["weights"] == at_once["weights"]
    assert len(resumed["history"]) == 2
    if backend == "tensorflow":
        assert resumed["history"][0] == at_once["history"][0]
    assert not (folder / "checkpoints").exists()


def test_an_experiment_measures_networks_of_keras_3_and_their_files(tmp_path: Path) -> None:
    text = RECIPE.replace("epochs = 1", 'epochs = 4\nbackend = "tensorflow"')
    text = text.replace("export = false", "export = true")
    text = text.replace('name = "DQ"', f'name = "DQ"\n{AUDITED}', 1)
    experiment = small_experiment(tmp_path, text)
    experiment.run()
    figures = {unit.variant.name: found for unit, _, found in experiment.found()}
    assert set(figures) == {"float", "DQ"}
    images = load_images(experiment.recipe.variants[0].settings.data)
    x, y = evaluation_images(images, 40)
    for unit, record, found in experiment.found():
        model = keras.saving.load_model(unit.folder(experiment.out) / "model.keras")
        right = model.predict(x, verbose=0).argmax(-1) == y
        assert found["clean"] == "".join("1" if value else "0" for value in right)
        assert len(record["history"]) == 4
    # The integer file computes what was trained.
    assert "tflite" not in figures["float"]
    assert figures["DQ"]["tflite"]["exact"] is True
    assert figures["DQ"]["tflite"]["clean"] == figures["DQ"]["clean"]
    assert set(figures["DQ"]["attacks"]["32"]) == {"fgsm"}
    # The audit saw the file, too.
    checks = {check["name"]: check["status"] for check in figures["DQ"]["audit"]["checks"]}
    assert checks["model vs twin vs runtime"] == "passed"
    assert "audit" not in figures["float"]


def test_a_network_at_chance_is_measured_without_an_audit(tmp_path: Path) -> None:
    text = RECIPE.replace("epochs = 1", 'epochs = 1\nlearning_rate = 1e-9\nbackend = "tensorflow"')
    text = text.replace('name = "float"', 'name = "chance"', 1).replace('"float"', '"chance"')
    text = text.replace("beta = 0.0 }", "beta = 0.0 }, evaluation = { audit_images = 8 }")
    text = text.replace("images = 40", "images = 10")
    notes: list[str] = []
    experiment = small_experiment(tmp_path, text, tell=notes.append)
    (unit, _) = experiment.units()
    experiment._do(unit)
    found = json.loads(unit.result(experiment.out).read_text())
    assert "audit" not in found
    assert found["audit_left_out"].endswith("of 10 images right")
    assert any("no audit" in note and "of 10 images" in note for note in notes)


def test_weight_decay_leaves_learned_steps_alone() -> None:
    """One step of SGD: decay takes its share of the kernels off, and nothing of the factors."""
    image = keras.Input((4,))
    hidden = keras.layers.Dense(3, activation="relu", name="hidden")(image)
    plain = keras.Model(image, keras.layers.Dense(2, name="logits")(hidden))
    draw = np.random.default_rng(0)
    x, y = draw.random((16, 4), np.float32), draw.integers(0, 2, 16)
    learned = {"activation_range": "learned", "kernel_range": "learned"}
    trained = []
    for decay in (0.0, 0.5):
        model = tfdq.quantize_model(plain, 0.0, input_range=(0.0, 1.0), **learned)
        before = [np.asarray(weight) for weight in model.trainable_weights]
        sgd = {"optimizer": "sgd", "momentum": 0.0, "schedule": "constant", "learning_rate": 0.01}
        compile_for(model, TrainingSettings.model_validate({**sgd, "weight_decay": decay}), 1)
        model.train_on_batch(x, y)
        trained.append([np.asarray(weight) for weight in model.trainable_weights])
    names = [weight.name for weight in model.trainable_weights]
    assert sum(name.endswith("step_factor") for name in names) == 3
    for name, start, free, decayed in zip(names, before, *trained, strict=True):
        taken = 0.0 if name.endswith("step_factor") else 0.5 * 0.01
        np.testing.assert_allclose(decayed, free - taken * start, rtol=1e-5, atol=1e-7)


def test_a_dry_run_times_a_step_on_keras_3(tmp_path: Path) -> None:
    text = RECIPE.replace("epochs = 1", 'epochs = 3\nbackend = "tensorflow"')
    experiment = small_experiment(tmp_path, text)
    cost = estimate(experiment)
    assert [kind.units for kind in cost.kinds] == [1, 1]
    # 200 images in batches of 50, 3 epochs.
    assert cost.training_seconds == pytest.approx(12 * sum(k.step_seconds for k in cost.kinds))
    assert all(kind.step_seconds > 0 and kind.evaluation_seconds > 0 for kind in cost.kinds)
    assert cost.memory_bytes > 100e6
    assert not (tmp_path / "out" / "runs").exists()


def test_what_one_keras_alone_can_do_is_refused_on_the_other() -> None:
    for place, value in (
        ("quantization.activation_range", "learned"),
        ("quantization.kernel_range", "learned"),
        ("adversarial.attack", "n-fgsm"),
        ("adversarial.warmup_epochs", 1.0),
        ("training.average", 0.99),
        ("training.label_smoothing", 0.1),
        ("training.checkpoint_precision", "bfloat16"),
    ):
        with pytest.raises(ValueError, match=rf"{place} = .* is for Keras 3: set training.backend"):
            RunSettings().changed({place: value})
        RunSettings().changed({place: value, "training.backend": "torch"})
    squeezing = {"evaluation.squeezing": ("median_2",), "training.backend": "jax"}
    with pytest.raises(ValueError, match=r"evaluation.squeezing = .* is for tf_keras"):
        RunSettings().changed(squeezing)
    amplification = {"quantization.activation_bits": 0, "evaluation.amplification": (8,)}
    RunSettings().changed({"penalty.beta": 0.0, "training.backend": "torch", **amplification})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "trades"}, "objective 'trades' takes the attacks"),
        ({"objective": "mart", "attack": "free"}, "objective 'mart' takes the attacks"),
        ({"trade_off": 2.0, "attack": "pgd"}, "trade_off is the weight"),
        ({"patience": 3}, "patience watches adversarial training"),
    ],
)
def test_adversarial_settings_that_do_not_go_together_are_refused(
    changes: dict[str, object], message: str
) -> None:
    given = {f"adversarial.{name}": value for name, value in changes.items()}
    with pytest.raises(ValueError, match=message):
        RunSettings().changed({"training.backend": "jax", **given})


def test_later_settings_leave_the_names_of_earlier_runs_alone() -> None:
    """The key of the default run, as it was before there was a backend to name."""
    assert RunSettings().training_key(0) == DEFAULT_KEY
    other = RunSettings().changed({"training.backend": "tensorflow"})
    assert other.training_key(0) != DEFAULT_KEY


def test_backends_that_cannot_be_are_named() -> None:
    running = keras.backend.backend()
    other = "torch" if running != "torch" else "jax"
    with pytest.raises(ValueError, match=f"on the {running} backend already.*is {other}"):
        choose_backend([other])
    with pytest.raises(ValueError, match="these runs name jax and tf_keras"):
        choose_backend(["jax", "tf_keras", "jax"])
    assert choose_backend([running]) == running
