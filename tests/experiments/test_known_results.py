"""An experiment that goes on from results on record; the same networks on held-out images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.experiments.small_recipe import BLACK_BOX, RECIPE, small_experiment
from tfdq.experiments.estimate import estimate
from tfdq.experiments.known_results import KnownResults
from tfdq.experiments.measuring import evaluation_images
from tfdq.experiments.networks import load_images
from tfdq.experiments.recipe import load_recipe
from tfdq.experiments.runner import Experiment
from tfdq.experiments.strategy import open_machines
from tfdq.report.experiment_files import write_results
from tfdq.report.experiment_table import as_markdown

MORE = """
[[variants]]
name = "fewer images"
set = { evaluation = { images = 20 } }
"""
NOTE = "What `--known` names had been measured before"


@pytest.fixture(scope="module")
def on_record(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """The results of the two, and their file."""
    experiment = small_experiment(tmp_path_factory.mktemp("first"), RECIPE)
    experiment.run()
    results, folder = write_results(experiment, "first", "tfdq reproduce recipe.toml")
    assert results["missing"] == []
    return results, folder / "results.json"


def test_only_what_is_new_is_done(on_record: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    before, file = on_record
    notes: list[str] = []
    known = KnownResults([file])
    experiment = small_experiment(tmp_path, RECIPE + MORE, tell=notes.append, known=known)
    assert [unit.title for unit in experiment.pending()] == ["fewer images, seed 0"]
    assert estimate(experiment).done == 2
    experiment.run()
    assert {note.partition(":")[0] for note in notes} == {"fewer images, seed 0"}
    assert len(list((experiment.out / "runs").iterdir())) == 1
    command = "tfdq reproduce recipe.toml --known first.json"
    results, folder = write_results(experiment, "more", command)
    assert results["missing"] == []
    assert results["claims"] == before["claims"]
    # What was taken stands as it was measured, with the commit and versions of then.
    assert [run for run in results["runs"] if run["variant"] != "fewer images"] == before["runs"]
    assert results["summary"].items() >= before["summary"].items()
    assert NOTE in as_markdown(results)
    assert NOTE not in as_markdown(before)
    # Of two files the second has what the first lacks; settings and seed decide.
    anew = experiment.recipe.variant("fewer images").settings
    assert known.find(anew, 0) is None
    both = KnownResults([file, folder / "results.json"])
    assert both.find(anew, 0) == results["runs"][-1]
    assert both.find(anew, 1) is None


def test_a_file_of_an_unknown_setting_is_refused(
    on_record: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    content = json.loads(on_record[1].read_text())
    content["runs"][0]["figures"]["evaluation"]["colour"] = "red"
    path = tmp_path / "results.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="colour"):
        KnownResults([path])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no results file"),
        ("{", "is no results.json"),
        ("[]", "is no results.json"),
        ('{"format": "another"}', "its format is 'another'"),
        ('{"format": "tfdq experiment", "runs": [{"training_key": 3, "training": {}}]}', "a run"),
        ('{"format": "tfdq experiment", "runs": [{"training_key": "3", "training": {}}]}', "is no"),
    ],
)
def test_what_is_no_results_file(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "results.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        KnownResults([path])


def test_known_results_have_no_networks_to_attack_with(
    on_record: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    known = KnownResults([on_record[1]])
    with pytest.raises(ValueError, match="leave --known out"):
        small_experiment(tmp_path, RECIPE + BLACK_BOX, known=known)


def test_held_out_images_are_other_ones(
    on_record: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    changes = {"evaluation.held_out": [True]}
    (tmp_path / "recipe.toml").write_text(RECIPE)
    recipe = load_recipe(tmp_path / "recipe.toml", overrides=changes, only=["float"])
    settings, usual = recipe.variants[0].settings, load_recipe(tmp_path / "recipe.toml")
    images = load_images(settings.data)
    # No image of digits occurs twice: those of the two parts are known by their pixels.
    first, labels = evaluation_images(images, 40)
    other, other_labels = evaluation_images(images, 40, held_out=True)
    assert len({x.tobytes() for x in (*first, *other)}) == 80
    # Nor is one of them among the usual ones where those are fewer or more.
    for count in (7, 40, len(images.y_test) // 2):
        usually, _ = evaluation_images(images, count)
        assert not {x.tobytes() for x in usually} & {x.tobytes() for x in other}
    # The classes are in proportion in both: a count may differ by the rounding of two draws.
    difference = np.bincount(labels, minlength=10) - np.bincount(other_labels, minlength=10)
    assert np.abs(difference).max() <= 2
    # What was measured before the setting existed is found under its name.
    known = KnownResults([on_record[1]])
    assert known.find(usual.variants[0].settings, 0) is not None
    assert known.find(settings, 0) is None
    one = open_machines("one_device")
    experiment = Experiment(recipe, tmp_path / "out", (0,), one, known=known)
    experiment.run()
    results, _ = write_results(experiment, "held-out", "tfdq reproduce recipe.toml")
    found, before = results["runs"][0], on_record[0]["runs"][0]
    assert found["training"]["weights"] == before["training"]["weights"]
    assert found["figures"]["clean"] != before["figures"]["clean"]
    assert "They are held out" in as_markdown(results)
    assert "They are held out" not in as_markdown(on_record[0])


def test_too_few_images_to_hold_any_out(tmp_path: Path) -> None:
    text = RECIPE.replace("images = 40", "images = 300\nheld_out = true")
    with pytest.raises(ValueError, match=r"needs 600 test images, .* lower evaluation.images"):
        small_experiment(tmp_path, text)
    assert not (tmp_path / "out").exists()
