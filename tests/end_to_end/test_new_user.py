"""The README as a new user follows it: own images and Keras 3 model, to a board.

The README's own blocks are run, in order, in one folder. To save time there are fewer epochs, and
fewer images in the audit and the evaluation.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.documentation.markdown import ROOT, Block, blocks, commands
from tfdq.cli import main

pytestmark = [pytest.mark.environments, pytest.mark.slow, pytest.mark.timeout(1800)]

CHECKS = ["determinism", "zero gradients", "single step vs iterated"]
SMALLER = {
    "train": ["--epochs", "2", "--train-limit", "400"],
    "audit": ["--limit", "8", "--queries", "5", "--json", "--checks", ",".join(CHECKS)],
    "export": ["--json"],
    "run": ["--json"],
}
CLASSES = 4


def trip() -> list[Block]:
    """Return the blocks of the README's section about one's own model."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    start = lines.index("## Your own model, your own images") + 1
    ends = [n for n, line in enumerate(lines, 1) if line.startswith("## ") and n > start]
    return [block for block in blocks("README.md") if start < block.line < ends[0]]


def test_the_first_ten_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the README shows first, on a Keras 3 model and images of your own."""
    import keras
    from sklearn.datasets import load_digits

    import tfdq.robustness

    images, labels = load_digits(return_X_y=True)
    x = (images.reshape(-1, 8, 8, 1) / 16).astype(np.float32)
    model = keras.Sequential(
        [
            keras.layers.Input((8, 8, 1)),
            keras.layers.Conv2D(8, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )
    full = tfdq.robustness.audit
    monkeypatch.setattr(tfdq.robustness, "audit", partial(full, checks=CHECKS, progress=False))
    monkeypatch.chdir(tmp_path)
    block = next(block.text for block in blocks("README.md") if block.language == "python")
    names = {"model": model, "x_train": x[:1000], "y_train": labels[:1000]}
    names |= {"x_test": x[1000:1200], "y_test": labels[1000:1200]}
    run(block.replace("epochs=30", "epochs=2, verbose=0"), names)
    assert isinstance(names["qat"], keras.Model)
    assert (tmp_path / "model.tflite").stat().st_size > 1000


def python_blocks() -> list[str]:
    """Return its Python blocks: the model; quantize, train, export; evaluate, audit."""
    found = [block.text for block in trip() if block.language == "python"]
    assert len(found) == 3
    return found


def run(text: str, names: dict[str, Any]) -> dict[str, Any]:
    """Run a Python block of the README, and return the names that it leaves."""
    exec(compile(text, "README.md", "exec"), names)
    return names


def tfdq(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    """Run a command with its numbers made smaller; return its status and JSON."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main([*arguments, *SMALLER[arguments[0]]])
    printed = capsys.readouterr()
    if int(left.value.code or 0) == 2:
        pytest.fail(printed.err)
    json_wanted = "--json" in SMALLER[arguments[0]]
    return int(left.value.code or 0), json.loads(printed.out) if json_wanted else printed.out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `photos/CLASS/*.png`: real handwriting, as files."""
    from PIL import Image

    from tfdq.data import load

    home = tmp_path_factory.mktemp("user")
    digits = load("digits")
    for label in range(CLASSES):
        place = home / "photos" / f"digit-{label}"
        place.mkdir(parents=True)
        for number, image in enumerate(digits.x_train[digits.y_train == label]):
            Image.fromarray(image[..., 0]).save(place / f"{number:03}.png")
    return home


def test_the_readme_leads_to_an_integer_file_on_a_board(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    shell = [command for block in trip() for command in commands(block)]
    names = run(python_blocks()[0], {})
    assert names["photos"].input_shape == (32, 32, 1)

    # From the shell: train, audit, export, run.
    train, audit, export, use = (c[1:] for c in shell if c[0] == "tfdq")
    assert tfdq(capsys, *train)[0] == 0
    status, verdict = tfdq(capsys, *audit)
    assert status == (0 if verdict["passed"] else 1)
    ran = {check["name"] for check in verdict["checks"] if check["status"] != "not run"}
    assert ran == set(CHECKS)
    status, exported = tfdq(capsys, *export)
    assert status == 0
    assert exported["integer_only"]
    assert exported["parity"]["runtime"]
    status, figures = tfdq(capsys, *use)
    assert status == 0
    assert figures["images"] == len(names["photos"].y_test)

    # On the board: our second distribution in an environment of its own.
    images = (names["photos"].x_test[:16] / 255).astype(np.float32)
    np.save("images.npy", images)
    board = environment_with_edge(folder)
    on_board = [c for c in shell if c[:3] == ["python", "-m", "tflite_export"]]
    assert [c[3] for c in on_board] == ["selftest", "run"]
    assert call(board, *on_board[0][1:]).startswith("PASS")
    lines = call(board, *on_board[1][1:]).strip().splitlines()
    from tflite_export import Interpreter

    here = Interpreter("mine.tflite").predict(images)
    # By their names, which the folders gave.
    classes = names["photos"].class_names
    there = [classes.index(line.split("\t")[1].split(":")[0]) for line in lines]
    best = here[np.arange(len(here)), there]
    np.testing.assert_array_equal(best, here.max(1))
    with pytest.raises(subprocess.CalledProcessError):
        call(board, "-c", "import tensorflow")


def test_the_same_in_python(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    first, train, evaluate = python_blocks()
    names = run(first, {"CHECKS": CHECKS[:2]})
    names = run(re.sub(r"epochs=\d+", "epochs=10", train), names)
    assert (folder / "again.tflite").exists()
    assert names["exported"].parity.exact
    smaller = {
        "min(1000,": "min(32,",
        "epsilons=": 'attacks=["fgsm"], epsilons=',
        "eps=8 / 255)": "eps=8 / 255, examples=8, checks=CHECKS)",
    }
    for text, less in smaller.items():
        assert text in evaluate
        evaluate = evaluate.replace(text, less)
    names = run(evaluate, names)
    # All classes are in the sample, and the network knows some of them.
    assert set(names["y"]) == set(range(CLASSES))
    clean = np.mean(names["qat"].predict(names["x"], verbose=0).argmax(-1) == names["y"])
    assert clean > 1.5 / CLASSES
    assert names["report"].clean("DQ").value == pytest.approx(clean)
    assert names["report"].robust("DQ", 8 / 255).value <= clean


def environment_with_edge(folder: Path) -> Path:
    """Build `tfdq-edge` and install it into an empty environment; return its Python."""
    pip = ["-m", "pip", "--disable-pip-version-check", "--quiet"]
    wheels = folder / "wheels"
    run_quietly(
        sys.executable, *pip, "wheel", "--no-deps", "--no-build-isolation", "-w", wheels,
        ROOT / "edge",
    )  # fmt: skip
    run_quietly(sys.executable, "-m", "venv", folder / "board")
    python = folder / "board" / "bin" / "python"
    run_quietly(python, *pip, "install", *wheels.glob("tfdq_edge-*.whl"))
    return python


def run_quietly(*command: object) -> None:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"{' '.join(map(str, command))}:\n{done.stderr}")


def call(python: Path, *arguments: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        [python, *arguments], capture_output=True, text=True, env=environment, check=True
    ).stdout
