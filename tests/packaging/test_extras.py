"""The extras that no test environment has installed still resolve, to versions that exist."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.packaging.test_metadata import PROJECT, canonical

pytestmark = [pytest.mark.environments, pytest.mark.slow]

# What each is for; all of it must be among what pip would install.
WANTED = {
    "gpu": {"tensorflow", "nvidia-cudnn-cu12", "nvidia-cuda-runtime-cu12", "nvidia-cublas-cu12"},
    "tpu": {"tensorflow", "tf-keras", "tensorflow-tpu", "libtpu"},
    "tflite-runtime": {"tflite-runtime", "ai-edge-litert", "numpy"},
}


@pytest.mark.parametrize("extra", WANTED)
def test_resolves(extra: str, tmp_path: Path) -> None:
    """Ask pip what it would install beside the library; nothing is installed."""
    if extra == "tflite-runtime" and sys.version_info >= (3, 12):
        pytest.skip("tflite-runtime 2.14 has no wheel for this Python")
    asked = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"][extra]]
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
    command += ["--disable-pip-version-check", "--report", str(report), *asked]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    parts = json.loads(report.read_text(encoding="utf-8"))["install"]
    found = {canonical(part["metadata"]["name"]): part["metadata"]["version"] for part in parts}
    assert WANTED[extra] <= set(found)
    for requirement in map(Requirement, asked):
        if requirement.marker is None or requirement.marker.evaluate():
            assert Version(found[canonical(requirement.name)]) in requirement.specifier


def test_the_older_runtime_asks_for_nothing_where_it_has_no_wheel() -> None:
    """NumPy 1.26, which it needs, has no wheel for Python 3.13 either."""
    for text in PROJECT["optional-dependencies"]["tflite-runtime"]:
        marker = Requirement(text).marker
        assert marker is not None
        assert marker.evaluate({"python_version": "3.11"})
        assert not marker.evaluate({"python_version": "3.12"})
