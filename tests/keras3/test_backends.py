"""Files cross from backend to backend; backends that cannot train are refused by name."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tests.keras3.networks import small_cnn
from tfdq.keras3 import calibrate, quantize_model

ROOT = Path(__file__).resolve().parents[2]


def run(backend: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False
    )


def test_a_file_gives_the_same_integers_on_every_backend(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((32, 8, 8, 1)).astype(np.float32)
    model = calibrate(quantize_model(small_cnn(), weight_bits=4, activation_bits=4), x)
    files = [tmp_path / f"{name}.keras" for name in ("first", "second", "third", "fourth")]
    model.save(files[0])
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", model.predict(x, verbose=0))
    script = str(ROOT / "tests" / "keras3" / "load_elsewhere.py")
    data = [str(tmp_path / "x.npy"), str(tmp_path / "y.npy")]
    there = [name for name in ("jax", "torch", "tensorflow") if find_spec(name)]
    for backend, source, target in zip(there, files, files[1:], strict=False):
        done = run(backend, script, str(source), *data, str(target))
        assert done.returncode == 0, f"{backend}: {done.stderr[-2000:]}"


@pytest.mark.parametrize("backend", ["numpy"])
def test_a_backend_that_cannot_train_is_refused(backend: str) -> None:
    done = run(backend, "-c", "import tfdq.keras3")
    assert done.returncode != 0
    assert f"Keras runs on the '{backend}' backend, on which nothing can be trained" in done.stderr
    assert "KERAS_BACKEND to one of tensorflow, jax, torch" in done.stderr
