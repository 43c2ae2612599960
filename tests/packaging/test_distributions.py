"""The wheels and source archives that are published; one of them in an empty environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import tfdq
from tests.needs import require

require("build", "release")
require("uv", "release")

ROOT = Path(__file__).resolve().parents[2]
VERSION = tfdq.__version__

pytestmark = pytest.mark.slow


def checked(*command: object, **options: object) -> str:
    done = subprocess.run(  # type: ignore[call-overload]
        [*map(str, command)], capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return str(done.stdout)


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with both distributions, built from a copy of the tracked sources."""
    source = tmp_path_factory.mktemp("source") / "tfdq"
    ignore = shutil.ignore_patterns(
        ".*", "__pycache__", "*.egg-info", "build", "dist", "runs", "site", "results"
    )
    shutil.copytree(ROOT, source, ignore=ignore, symlinks=True)
    out = tmp_path_factory.mktemp("dist")
    for folder in (source, source / "edge"):
        checked(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, folder)
    return out


def test_descriptions_are_valid(dist: Path) -> None:
    files = sorted(dist.iterdir())
    assert len(files) == 4
    checked(sys.executable, "-m", "twine", "check", "--strict", *files)


def test_wheels_hold_the_packages_their_types_and_data(dist: Path) -> None:
    whole = zipfile.ZipFile(dist / f"tfdq-{VERSION}-py3-none-any.whl").namelist()
    small = zipfile.ZipFile(dist / f"tfdq_edge-{VERSION}-py3-none-any.whl").namelist()
    assert {"tfdq/py.typed", "tflite_export/py.typed"} <= set(whole)
    assert "tflite_export/py.typed" in small
    for package, names in (("tfdq", whole), ("tflite_export", whole)):
        there = {
            str(path.relative_to(ROOT))
            for path in (ROOT / package).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        assert there <= set(names)
    folders = {name.split("/")[0] for name in [*whole, *small]}
    assert folders == {
        "tfdq",
        "tflite_export",
        f"tfdq-{VERSION}.dist-info",
        f"tfdq_edge-{VERSION}.dist-info",
    }


def test_the_wheel_for_boards_holds_what_runs_there(dist: Path) -> None:
    names = zipfile.ZipFile(dist / f"tfdq_edge-{VERSION}-py3-none-any.whl").namelist()
    modules = {name for name in names if name.endswith(".py")}
    there = {
        str(path.relative_to(ROOT))
        for folder in ("", "ir", "ops", "files", "runtime")
        for path in (ROOT / "tflite_export" / folder).glob("*.py")
    }
    assert modules == {name for name in there if "twin" not in name}
    assert not [path for path in ROOT.rglob("*") if path.is_symlink() and not ignored(path)]


def ignored(path: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(ROOT).parts)


def test_source_archives_can_be_tested_and_built(dist: Path) -> None:
    with tarfile.open(dist / f"tfdq-{VERSION}.tar.gz") as archive:
        names = archive.getnames()
    for file in ("tests/conftest.py", "constraints.txt", "docs/index.md", "Makefile", "LICENSE"):
        assert f"tfdq-{VERSION}/{file}" in names
    assert not [name for name in names if "__pycache__" in name or "/edge" in name]
    with tarfile.open(dist / f"tfdq_edge-{VERSION}.tar.gz") as archive:
        assert not any(member.issym() for member in archive.getmembers())


TRIP = """
import keras, tf_keras, numpy as np, tfdq, tflite_export
x = np.random.default_rng(0).random((32, 8, 8, 1)).astype("float32")
for kit in (keras, tf_keras):
    model = kit.Sequential([kit.layers.Input((8, 8, 1)), kit.layers.Conv2D(4, 3),
        kit.layers.ReLU(), kit.layers.Flatten(), kit.layers.Dense(10)])
    quantized = tfdq.quantize_model(model, lipschitz_beta=0.002)
    assert isinstance(quantized, kit.Model)
    quantized.compile("sgd", kit.losses.SparseCategoricalCrossentropy(from_logits=True))
    quantized.fit(x, np.arange(32) % 10, verbose=0)
    exported = tflite_export.convert(quantized, calibration=x)
    assert exported.parity.exact
exported.save("model.tflite")
print("exact")
"""


@pytest.mark.environments
@pytest.mark.timeout(1800)  # it downloads and installs TensorFlow
def test_the_wheel_works_in_an_empty_environment(dist: Path, tmp_path: Path) -> None:
    uv = [sys.executable, "-m", "uv"]
    checked(*uv, "venv", "--quiet", "--python", sys.executable, tmp_path / "env")
    python = tmp_path / "env" / "bin" / "python"
    wheel = dist / f"tfdq-{VERSION}-py3-none-any.whl"
    pip = [*uv, "pip", "install", "--quiet", "--python", python]
    checked(*pip, "--constraint", ROOT / "constraints.txt", f"{wheel}[tensorflow]")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "TF_"))}
    program = tmp_path / "env" / "bin" / "tfdq"
    (tmp_path / "trip.py").write_text(TRIP, encoding="utf-8")
    assert checked(python, "trip.py", cwd=tmp_path, env=clean).split()[-1] == "exact"
    assert "CONV_2D" in checked(
        python, "-m", "tflite_export", "inspect", "model.tflite", cwd=tmp_path, env=clean
    )
    # What the wheel carries besides code.
    assert "white-box" in checked(program, "recipes", cwd=tmp_path, env=clean)
