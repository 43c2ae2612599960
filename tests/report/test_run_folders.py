"""Which networks the folders that commands leave stand for."""

import shutil
from pathlib import Path

import pytest

from tests.report.conftest import HOSTILE
from tfdq.experiments.folder import join_folder
from tfdq.report.networks import ImageSource, open_networks
from tfdq.report.run_folders import integer_file_of, networks_in
from tfdq.report.run_report import write_report


@pytest.fixture
def demo(models: list[Path], tmp_path: Path) -> Path:
    folder = join_folder(tmp_path / "demo", "demo")
    (folder / "models").mkdir()
    for model in models:
        shutil.copy(model, folder / "models")
        shutil.copy(model.with_suffix(".tflite"), folder)
    return folder


def test_a_demo_stands_for_its_models(demo: Path, models: list[Path]) -> None:
    found = networks_in([demo])
    assert [path.name for path in found] == [path.name for path in models]
    assert [integer_file_of(path) for path in found] == [
        demo / path.with_suffix(".tflite").name for path in models
    ]
    networks, x, y = open_networks([demo], ImageSource(), 16)
    assert {network.name for network in networks} == {HOSTILE, "_vq $a$"}
    assert all(network.file is not None for network in networks)
    assert x.shape == (16, 8, 8, 1)
    assert y.shape == (16,)


def test_a_reproduction_stands_for_its_finished_runs(models: list[Path], tmp_path: Path) -> None:
    folder = join_folder(tmp_path / "out", "reproduce")
    for name in ("b", "a", "begun"):
        (folder / "runs" / name).mkdir(parents=True)
    for name in ("b", "a"):
        shutil.copy(models[0], folder / "runs" / name / "model.keras")
    assert networks_in([folder]) == [folder / "runs" / "a", folder / "runs" / "b"]
    assert networks_in([models[1], folder / "runs" / "b"]) == [models[1], folder / "runs" / "b"]


@pytest.mark.parametrize("kind", ["demo", "reproduce"])
def test_a_folder_without_a_finished_network_is_named(kind: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"no finished network.*tfdq {kind}"):
        networks_in([join_folder(tmp_path / "out", kind)])


def test_the_folder_of_a_report_is_made_when_its_networks_are_there(
    models: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "new" / "report.html"
    with pytest.raises(FileNotFoundError, match="there is no"):
        write_report([tmp_path / "none"], out, source=ImageSource("digits"))
    assert not out.parent.exists()
    write_report(models[:1], out, source=ImageSource("digits"), images=8)
    assert out.stat().st_size > 10_000
