"""What pip would install resolves on every Python that we support, extra by extra."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.needs import require
from tests.packaging.test_metadata import PROJECT, asked_for, canonical

require("uv", "release")
pytestmark = pytest.mark.environments

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = PROJECT["optional-dependencies"]
# What each of these is for; all of it must be among what would be installed.
WANTED = {
    "gpu": {"tensorflow", "nvidia-cudnn-cu12", "nvidia-cuda-runtime-cu12", "nvidia-cublas-cu12"},
    "tpu": {"tensorflow", "tf-keras", "tensorflow-tpu", "libtpu"},
    "tflite-runtime": {"ai-edge-litert", "numpy"},
}


@pytest.mark.parametrize("extra", [*WANTED, "everything else"])
def test_resolves(extra: str) -> None:
    """Ask uv what would be installed beside the library; nothing is installed."""
    names = [extra] if extra in WANTED else sorted(EXTRAS.keys() - WANTED)
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-annotate"]
    command += ["--universal", "--python-version", "3.10", "pyproject.toml"]
    command += [word for name in names for word in ("--extra", name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    pins = [Requirement(line) for line in done.stdout.splitlines() if not line.startswith("#")]
    for python in ("3.10", "3.11", "3.12", "3.13"):
        environment = {"python_version": python, "python_full_version": f"{python}.0"}
        environment |= {"sys_platform": "linux", "platform_machine": "x86_64"}
        found = {
            canonical(pin.name): Version(str(pin.specifier).removeprefix("=="))
            for pin in pins
            if pin.marker is None or pin.marker.evaluate(environment)
        }
        assert WANTED.get(extra, {"tensorflow"}) <= set(found)
        for requirement in map(Requirement, asked_for(*names)):
            if requirement.marker is None or requirement.marker.evaluate(environment):
                assert found[canonical(requirement.name)] in requirement.specifier


def test_the_older_runtime_asks_for_nothing_where_it_has_no_wheel() -> None:
    """NumPy 1.26, which it needs, has no wheel for Python 3.13 either."""
    for text in PROJECT["optional-dependencies"]["tflite-runtime"]:
        marker = Requirement(text).marker
        assert marker is not None
        assert marker.evaluate({"python_version": "3.11"})
        assert not marker.evaluate({"python_version": "3.12"})
