"""`tfdq train`: killed, interrupted, repeated, and started again with other settings."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfdq as library
from tfdq.cli import main
from tfdq.data import load
from tfdq.experiments.folder import join_folder
from tfdq.models import small_cnn

SCRIPT = Path(__file__).with_name("killed_classifier.py")
TFDQ = Path(sys.executable).with_name("tfdq")
# 4 steps an epoch; with every part that keeps a state between steps.
SETTINGS = (
    "--train-limit", "256", "--epochs", "3", "--augment", "pad_crop_flip", "--adversarial",
    "r+fgsm", "--beta", "0.01",
)  # fmt: skip


def tfdq(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


def killed_at(step: int, out: Path, *more: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCRIPT, step, "train", "--out", out, *SETTINGS, *more]
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)


def weights(out: Path) -> list[np.ndarray]:
    return library.load_model(out / "model.keras", compile=False).get_weights()


def record(out: Path) -> dict[str, Any]:
    return json.loads((out / "training.json").read_text())


def test_killed_and_started_again_the_weights_are_the_same_bit_for_bit(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert killed_at(0, whole).returncode == 0
    assert killed_at(7, killed).returncode == -signal.SIGKILL
    assert tf.train.latest_checkpoint(killed / "checkpoints").endswith("ckpt-4")
    assert not (killed / "model.keras").exists()
    again = killed_at(0, killed)
    assert again.returncode == 0, again.stderr
    for a, b in zip(weights(whole), weights(killed), strict=True):
        np.testing.assert_array_equal(a, b)
    accuracies = [
        [row["adversarial_accuracy"] for row in record(out)["history"]] for out in (whole, killed)
    ]
    assert accuracies[0] == accuracies[1]
    assert len(accuracies[0]) == 3
    assert record(whole)["test_accuracy"] == record(killed)["test_accuracy"]
    # Nothing but results is left behind.
    left = {path.name for path in killed.iterdir() if not path.name.startswith(".")}
    assert left == {
        "environment.json", "history.json", "logs", "model.keras", "recipe.toml", "settings.json",
        "tfdq-run.json", "training.json",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("number", "word"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")]
)
def test_a_signal_leaves_the_finished_epochs_and_says_so(
    number: signal.Signals, word: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(
        [TFDQ, "train", "--out", out, "--epochs", "500"],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not (out / "checkpoints" / "checkpoint").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert f"{word}; what was finished is kept in {out}; the same command goes on there" in error
    assert "Traceback" not in error
    assert tf.train.latest_checkpoint(out / "checkpoints")


def test_a_finished_training_is_not_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("train", "--out", tmp_path / "run", "--epochs", 1, "--train-limit", 128, "--json")
    assert tfdq(*command) == 0
    first = json.loads(capsys.readouterr().out)
    written = (tmp_path / "run" / "model.keras").stat().st_mtime_ns
    assert tfdq(*command) == 0
    assert json.loads(capsys.readouterr().out) == first
    assert (tmp_path / "run" / "model.keras").stat().st_mtime_ns == written


def test_other_settings_or_images_are_named_and_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digits = load("digits")
    arrays = {
        name: getattr(digits, name)[:64] for name in ("x_train", "y_train", "x_test", "y_test")
    }
    np.savez(tmp_path / "images.npz", **arrays)
    command = ("train", "--out", tmp_path / "run", "--data", tmp_path / "images.npz")
    assert tfdq(*command, "--epochs", 1) == 0
    # The same images by another path.
    same = tmp_path / "same.npz"
    same.write_bytes((tmp_path / "images.npz").read_bytes())
    capsys.readouterr()
    assert tfdq("train", "--out", tmp_path / "run", "--data", same, "--epochs", 1) == 0
    assert "done before: nothing was left to do" in capsys.readouterr().out
    (tmp_path / "run" / "training.json").rename(tmp_path / "training.json")
    assert tfdq("train", "--out", tmp_path / "run", "--data", same, "--epochs", 1) == 0
    assert str(same) in (tmp_path / "run" / "recipe.toml").read_text()
    before = (tmp_path / "run" / "model.keras").read_bytes()
    assert tfdq(*command, "--epochs", 2, "--beta", "0.1") == 2
    said = capsys.readouterr().err
    assert "holds a training with other settings (penalty.beta: 0.002, now 0.1, " in said
    assert "training.epochs: 1, now 2" in said
    assert "give another folder with --out" in said
    np.savez(tmp_path / "images.npz", **{**arrays, "x_train": 255 - arrays["x_train"]})
    assert tfdq(*command, "--epochs", 1) == 2
    assert "(other images)" in capsys.readouterr().err
    assert (tmp_path / "run" / "model.keras").read_bytes() == before


@pytest.mark.filterwarnings("default::tfdq.quantization.LaggingStatisticsWarning")
def test_a_start_model_of_keras_3_has_quick_statistics_unless_told_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(4, 3, use_bias=False, name="conv")(image)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization(name="norm")(x))
    x = keras.layers.Flatten()(x)
    keras.Model(image, keras.layers.Dense(10)(x)).save(tmp_path / "mine.keras")
    command = ("train", "--start", tmp_path / "mine.keras", "--train-limit", 64, "--epochs", 1)
    found = {}
    for name, more in (("default", ()), ("slow", ("--batch-norm-momentum", 0.99))):
        assert tfdq(*command, "--out", tmp_path / name, *more) == 0
        said = capsys.readouterr().err
        said = " ".join(said.split())
        assert said.count("moving statistics lag behind training") == (name == "slow")
        model = library.load_model(tmp_path / name / "model.keras", compile=False)
        found[name] = model.get_layer("quant_conv").layer.batch_norm.momentum
    assert found == {"default": 0.9, "slow": 0.99}
    # Another model in the file's place is another training.
    x = keras.layers.Flatten()(image)
    keras.Model(image, keras.layers.Dense(10)(x)).save(tmp_path / "mine.keras")
    assert tfdq(*command, "--out", tmp_path / "default") == 2
    assert "(another model to start from)" in capsys.readouterr().err


def test_a_training_that_diverges_says_what_to_lower(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("train", "--out", tmp_path / "run", "--train-limit", 256, "--learning-rate", 1e30)
    for _ in range(2):
        assert tfdq(*command) == 2
        assert "lower the learning rate (training.learning_rate) or beta" in capsys.readouterr().err
    assert not (tmp_path / "run" / "model.keras").exists()


def test_the_trained_model_is_what_keras_alone_would_train(tmp_path: Path) -> None:
    """Plain Keras with the same seed, order and optimizer gives the same float network."""
    assert tfdq("train", "--float", "--out", tmp_path / "run", "--epochs", 2) == 0
    from tfdq.data import pipeline, steps_per_epoch

    digits = load("digits")
    tf_keras.backend.clear_session()
    tf_keras.utils.set_random_seed(0)
    model = small_cnn(digits.input_shape, digits.classes)
    steps = steps_per_epoch(digits, 64)
    rate = tf_keras.optimizers.schedules.CosineDecay(3e-3, 2 * steps)
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf_keras.optimizers.Adam(rate), loss)
    model.fit(pipeline(digits, 64, "none", 0), epochs=2, steps_per_epoch=steps, verbose=0)
    for mine, theirs in zip(weights(tmp_path / "run"), model.get_weights(), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_a_run_is_repeated_from_its_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digits = load("digits")
    arrays = {
        name: getattr(digits, name)[:128] for name in ("x_train", "y_train", "x_test", "y_test")
    }
    np.savez(tmp_path / "mine.npz", **arrays)
    start = tmp_path / "start.keras"
    small_cnn(digits.input_shape, digits.classes, width=4).save(start)
    data = ("--data", tmp_path / "mine.npz", "--epochs", 2)
    options = (
        "--start", start, "--first-last-bits", 6, "--layer-bits", "logits=[8,8]",
        "--activation-range", "relu6", "--penalty", "srip", "--on", "folded", "--target", 1,
        "--ramp", "0,1.5", "--batch-norm-momentum", 0.8, "--adversarial", "pgd", "--eps", "16/255",
        "--adversarial-steps", 2, "--adversarial-ratio", 1.0, "--optimizer", "sgd", "--momentum",
        0.8, "--weight-decay", 1e-4, "--schedule", "steps", "--warmup-epochs", 0.5, "--augment",
        "pad_crop", "--batch-size", 32, "--train-limit", 96, "--seed", 3,
    )  # fmt: skip
    assert tfdq("train", "--out", tmp_path / "run", *data, *options) == 0
    recipe = tmp_path / "run" / "recipe.toml"
    again = ("reproduce", recipe, "--out", tmp_path / "again")
    none = ("suite=none", "suite_images=0", "export=false", "images=8", "attacks=['fgsm']")
    capsys.readouterr()
    assert tfdq(*again, *(part for text in none for part in ("--set", f"evaluation.{text}"))) == 0
    (repeated,) = (tmp_path / "again" / "runs").iterdir()
    assert json.loads((repeated / "settings.json").read_text())["seed"] == 3
    assert record(repeated)["weights"] == record(tmp_path / "run")["weights"]
    # Another model or other images in place of those are refused.
    start.write_bytes((tmp_path / "run" / "model.keras").read_bytes())
    assert tfdq(*again[:2], "--out", tmp_path / "other") == 2
    assert "is another model than model.start_digest says" in capsys.readouterr().err
    np.savez(tmp_path / "mine.npz", **{**arrays, "x_train": 255 - arrays["x_train"]})
    assert tfdq(*again[:2], "--out", tmp_path / "other") == 2
    assert "are others than data.digest says" in capsys.readouterr().err


def test_a_training_of_an_earlier_version_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    join_folder(tmp_path / "run", "train")
    before = {"seed": 0, "settings": {"model": "small_cnn", "quantized": True, "beta": 0.002}}
    (tmp_path / "run" / "settings.json").write_text(json.dumps(before))
    assert tfdq("train", "--out", tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert "holds a training of an earlier version" in said
    assert "model.keras is good" not in said
    (tmp_path / "run" / "model.keras").touch()
    assert tfdq("train", "--out", tmp_path / "run") == 2
    assert "its model.keras is good" in capsys.readouterr().err
