"""One folder for several experiments, and for several processes at once."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.experiments.small_recipe import BLACK_BOX, RECIPE, small_experiment
from tfdq.cli import main
from tfdq.experiments import runner
from tfdq.experiments.folder import hold
from tfdq.report.experiment_files import check_results, write_results

WIDER = RECIPE.replace("width = 4", "width = 6")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished experiment with a black-box attack, results in out/first."""
    path = tmp_path_factory.mktemp("shared")
    experiment = small_experiment(path, RECIPE + BLACK_BOX)
    experiment.run()
    results, _ = write_results(experiment, "first", "tfdq reproduce recipe.toml")
    assert [entry["seed"] for entry in results["transfers"]] == [0]
    return path


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        (WIDER, r"'float', seed 0 and 1 more"),
        (RECIPE.replace("images = 40", "images = 30"), r"'float', seed 0 and 1 more"),
        (RECIPE.replace('name = "DQ"', 'name = "DQ"\nset = { penalty = { beta = 0.1 } }'), "'DQ'"),
    ],
)
def test_results_are_not_put_in_the_place_of_others(folder: Path, text: str, lost: str) -> None:
    experiment = small_experiment(folder, text)
    with pytest.raises(ValueError, match=rf"{lost}.*--name"):
        check_results(experiment, "first")
    check_results(experiment, "another")


def test_more_seeds_and_the_same_again_are_welcome(folder: Path) -> None:
    check_results(small_experiment(folder, RECIPE), "first")
    check_results(small_experiment(folder, RECIPE, seeds=2), "first")


def test_the_command_says_so_before_any_work(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(WIDER)
    results = folder / "out" / "first" / "results.json"
    before, networks = results.read_text(), len(list((folder / "out" / "runs").iterdir()))
    command = ["reproduce", str(recipe), "--out", str(folder / "out"), "--name", "first"]
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--seeds", "1"])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--name" in error
    assert results.read_text() == before
    assert len(list((folder / "out" / "runs").iterdir())) == networks


def test_the_black_box_is_measured_by_one_process(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("another process is at it")

    monkeypatch.setattr(runner, "transfer", refuse)
    monkeypatch.setattr(runner, "_POLL_SECONDS", 0.05)
    experiment = small_experiment(folder, RECIPE + BLACK_BOX)
    file = experiment.transfer_file(0)
    figures = file.read_text()
    with hold(file.with_suffix("")):
        file.unlink()
        waiting = threading.Thread(target=experiment.run)
        waiting.start()
        time.sleep(0.5)
        assert waiting.is_alive()
        assert not file.exists()
        file.write_text(figures)
    waiting.join(timeout=60)
    assert not waiting.is_alive()
    assert json.loads(file.read_text()) == json.loads(figures)


def test_a_process_that_died_at_the_black_box_is_replaced(folder: Path) -> None:
    experiment = small_experiment(folder, RECIPE + BLACK_BOX)
    file = experiment.transfer_file(0)
    figures = json.loads(file.read_text())
    file.unlink()
    experiment.run()
    assert json.loads(file.read_text()) == figures
