"""What a test run says of the tests it skipped, and when a package counts as installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.needs import installed
from tests.skipped import lines_about

ROOT = Path(__file__).resolve().parents[2]

TESTS = """
import pytest
from tests.needs import require, required

@required("nowhere_at_all", "docs")
def test_marked(): raise AssertionError

def test_inside(): require("nowhere.at.all", "peers")

def test_found(): assert require("json", "dev").loads("1") == 1

@pytest.mark.skipif(True, reason="needs Debian's packages kotlin and chromium-driver")
def test_debian(): raise AssertionError

@pytest.mark.skipif(True, reason="root may write anywhere")
def test_other(): raise AssertionError
"""
MODULE = 'from tests.needs import require\nrequire("build", "release")\n'


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["alone", "workers"])
def test_the_end_of_a_run_names_the_command_that_brings_what_lacked(
    workers: list[str], tmp_path: Path
) -> None:
    """With a folder `build` in the checkout, which is not the package `build`."""
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "test_module.py").write_text(MODULE)
    (tmp_path / "build" / "lib").mkdir(parents=True)
    (tmp_path / "pytest.ini").write_text("[pytest]\npythonpath = .\n")
    # What the caller of this run adds to pytest need not be importable there.
    inherited = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.skipped", *workers],
        cwd=tmp_path,
        env={**inherited, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lacking = ["docs", "peers"] + ([] if installed("build") else ["release"])
    assert f"make test EXTRAS=dev,{','.join(lacking)}\n" in done.stdout
    assert f"{len(lacking)} tests or files of tests were skipped" in done.stdout
    assert "apt install chromium-driver kotlin\n" in done.stdout


def test_a_folder_is_no_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_folder" / "lib").mkdir(parents=True)
    (tmp_path / "some_package").mkdir()
    (tmp_path / "some_package" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert installed("some_package")
    assert not installed("some_folder")
    assert not installed("some_folder.lib")
    assert not installed("some_package.inner")
    assert not installed("nowhere.at.all")
    assert installed("json.decoder")


def test_nothing_is_said_where_no_package_lacked() -> None:
    assert lines_about([]) == []
    assert lines_about(["root may write anywhere", "TFDQ_DATA_DIR is not set"]) == []
