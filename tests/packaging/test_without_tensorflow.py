"""TensorFlow need not be installed: another backend does, and what lacks is said in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.needs import required
from tfdq._extras import explained, explained_backend

ROOT = Path(__file__).resolve().parents[2]
HIDE = """
import sys
from importlib.machinery import PathFinder
class Hiding:
    def find_spec(self, name, path=None, target=None):
        hidden = name.startswith("tensorflow")
        return None if hidden else PathFinder.find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Hiding()
"""


def run(backend: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "backend",
    [
        pytest.param("jax", marks=required("jax", "jax")),
        pytest.param("torch", marks=required("torch", "torch")),
    ],
)
def test_from_data_to_verdicts(backend: str, tmp_path: Path) -> None:
    done = run(backend, str(ROOT / "tests" / "packaging" / "without_tensorflow.py"), str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split()[-1] == "whole"


def test_a_lacking_backend_is_named_in_one_line() -> None:
    done = run("tensorflow", "-c", HIDE + "import tfdq, keras")
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ModuleNotFoundError: Keras runs on tensorflow, which is not installed")
    for backend in ("tensorflow", "jax", "torch"):
        assert f'"tfdq[{backend}]"' in last


@required("jax", "jax")
@required("torch", "torch")
def test_between_two_backends_the_command_line_asks_for_a_choice() -> None:
    file = ROOT / "tfdq" / "zoo" / "files" / "fashion-dq4.tflite"
    code = f"""
import os
del os.environ["KERAS_BACKEND"]
from tfdq.cli import main
main(["run", {str(file)!r}, "--data", "digits"])
"""
    done = run("", "-c", HIDE + code)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == (
        "error: Keras runs on tensorflow, which is not installed: set KERAS_BACKEND=jax or torch, "
        "which are installed"
    )


def test_a_lacking_package_is_named_with_its_extra() -> None:
    done = run("tensorflow", "-c", HIDE + "import tfdq; tfdq.quantize_scope")
    assert done.stderr.strip().splitlines()[-1] == (
        "ModuleNotFoundError: tfdq.quantize_scope needs tensorflow, which is not installed: "
        'pip install "tfdq[tensorflow]"'
    )


def test_a_command_names_the_extra_that_it_needs(tmp_path: Path) -> None:
    path = tmp_path / "model.h5"
    path.touch()
    call = f"from tfdq.cli import main; main(['attack', {str(path)!r}])"
    done = run("tensorflow", "-c", HIDE + call)
    assert done.stderr.strip().splitlines()[-1].endswith('pip install "tfdq[tensorflow]"')


def test_other_packages_are_left_to_their_own_errors() -> None:
    error = ModuleNotFoundError("No module named 'numpy'", name="numpy")
    assert explained(error, "tfdq.certify") is error
    assert explained_backend(error) is error
