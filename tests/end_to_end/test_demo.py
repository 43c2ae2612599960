"""The demo as a newcomer runs it, with fewer epochs: the same code from data to table."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from tfdq.cli import main
from tfdq.data import load
from tfdq.demo.run import _train_forms
from tfdq.demo.settings import DemoSettings
from tfdq.either_keras import is_quantized, load_model
from tfdq.experiments.folder import open_folder

ROOT = Path(__file__).parents[2]


def demo(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    tfdq = Path(sys.executable).with_name("tfdq")
    return subprocess.run(
        [str(tfdq), "demo", "--out", str(out), *options],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "80"},
        check=False,
        timeout=600,
    )


@pytest.fixture(scope="module")
def trip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, dict[str, Any]]:
    """Return the folder, the output and the results of one short demo."""
    out = tmp_path_factory.mktemp("demo") / "run"
    done = demo(out, "--epochs", "6", "--sweep", "2")
    assert done.returncode == 0, done.stderr[-3000:]
    return out, done.stdout, json.loads((out / "results.json").read_text())


NAMES = ["float", "VQ", "DQ (paper)", "DQ"]
FILES = [f"{name} .tflite" for name in NAMES[1:]]


def accuracies(results: dict[str, Any]) -> dict[str, Any]:
    """Return what a second run with the same seed must repeat."""
    robustness = results["robustness"]
    models = [{k: v for k, v in m.items() if k != "attacks"} for m in robustness["models"]]
    attacks = [
        {k: v for k, v in piece.items() if k != "seconds"}
        for m in robustness["models"]
        for piece in m["attacks"]
    ]
    return {
        "models": models,
        "attacks": attacks,
        "bits": results["bits"],
        "parity": results["parity"],
    }


def test_one_table_with_every_model_and_file(trip: tuple[Path, str, dict[str, Any]]) -> None:
    _, output, results = trip
    for name in (*NAMES, *FILES):
        assert name in output
    for column in ("clean", "FGSM", "R+FGSM", "PGD-20", "KiB", "images/s"):
        assert column in output
    assert "…" not in output  # nothing is cut off in a terminal of 80 columns
    assert "under these attacks" in " ".join(output.split())
    assert "Not audited" in " ".join(output.split())
    assert [model["name"] for model in results["robustness"]["models"]] == [*NAMES, *FILES]


def test_the_folder_holds_what_was_promised(trip: tuple[Path, str, dict[str, Any]]) -> None:
    out, _, results = trip
    assert {p.name for p in (out / "models").iterdir()} == {
        "float.keras",
        "vq.keras",
        "dq_paper.keras",
        "dq.keras",
    }
    assert {p.name for p in out.glob("*.tflite")} == {"vq.tflite", "dq_paper.tflite", "dq.tflite"}
    for plot in ("epsilons", "amplification", "bits"):
        assert (out / "plots" / f"{plot}.png").read_bytes().startswith(b"\x89PNG")
    assert results["settings"]["seed"] == 0
    assert results["versions"]["tensorflow"]


def test_saved_models_and_files_give_the_reported_accuracy(
    trip: tuple[Path, str, dict[str, Any]],
) -> None:
    """Load what was written, judge it by itself."""
    import tfdq
    from tfdq.data import load
    from tflite_export import IntegerTwin, Interpreter, integer_only

    out, _, results = trip
    data = load("digits")
    x, y = data.x_test.astype(np.float32) / 255, data.y_test
    for slug, name in (("vq", "VQ"), ("dq", "DQ")):
        keras = tfdq.load_model(out / "models" / f"{slug}.keras").predict(x, verbose=0).argmax(1)
        lite = Interpreter(out / f"{slug}.tflite").predict(x).argmax(1)
        twin = np.argmax(IntegerTwin(out / f"{slug}.tflite")(x), axis=1)
        assert np.mean(keras == lite) >= 0.995
        assert np.mean(twin == lite) >= 0.995
        assert integer_only((out / f"{slug}.tflite").read_bytes())
        for predicted, label in ((keras, name), (lite, f"{name} .tflite")):
            record = next(m for m in results["robustness"]["models"] if m["name"] == label)
            assert record["correct"].count("1") == int(np.sum(predicted == y))


def test_attacks_bite_and_grow_with_epsilon(trip: tuple[Path, str, dict[str, Any]]) -> None:
    *_, results = trip
    for model in results["robustness"]["models"]:
        broken = [p["broken"].count("1") for p in model["attacks"] if p["attack"] == "pgd"]
        assert broken == sorted(broken)
        assert broken[-1] > 200


@pytest.mark.exhaustive
def test_the_same_seed_gives_the_same_table(
    trip: tuple[Path, str, dict[str, Any]], tmp_path: Path
) -> None:
    *_, results = trip
    done = demo(tmp_path / "again", "--epochs", "6", "--sweep", "2")
    assert done.returncode == 0, done.stderr[-3000:]
    again = json.loads((tmp_path / "again" / "results.json").read_text())
    assert accuracies(again) == accuracies(results)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--activation-bits", "9"], "--activation-bits must be a whole number from 0 to 8, got 9"),
        (["--weight-bits", "1"], "--weight-bits must be a whole number from 2 to 8, got 1"),
        (["--beta", "-1"], "--beta must be a finite number >= 0"),
        (["--sweep", "2,x"], "--sweep takes bits"),
        (["--epochs", "0"], "--epochs"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["demo", "--out", str(tmp_path / "never"), *options])
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "never").exists()


def test_a_folder_of_somebody_else_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(SystemExit) as left:
        main(["demo", "--out", str(tmp_path)])
    assert left.value.code == 2
    assert "files that tfdq did not write" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_forms_of_a_backend_of_keras_3_are_its_models(tmp_path: Path) -> None:
    small = {"training.backend": "tensorflow", "training.epochs": 1}
    settings = DemoSettings(tmp_path, DemoSettings().run.changed(small))
    digits = load("digits").subset(train=128, seed=0)
    with open_folder(tmp_path, "demo") as out:
        models = _train_forms(settings, digits, out, progress=False)
    assert list(models) == NAMES
    assert all(isinstance(model, keras.Model) for model in models.values())
    assert [is_quantized(model) for model in models.values()] == [False, True, True, True]
    # The penalty is a loss of each of the four layers with a kernel.
    assert [len(model.losses) for model in models.values()] == [0, 0, 4, 4]
    kept = load_model(tmp_path / "models" / "dq.keras")
    x = digits.x_test[:32].astype(np.float32) / 255
    np.testing.assert_array_equal(kept.predict(x, verbose=0), models["DQ"].predict(x, verbose=0))
