"""Every field of the settings that training depends on has an option, which gives its value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer

from tfdq.cli import main
from tfdq.cli.app import app
from tfdq.cli.settings_options import RECORDED, SPELLINGS, fields, option_name, settings_of
from tfdq.experiments.recipe import load_recipe
from tfdq.experiments.recipe_of_run import recipe_of_run
from tfdq.experiments.settings import RunSettings

TRAINED = tuple(name for name in RunSettings.model_fields if name != "evaluation")
PLACES = tuple(fields(*TRAINED))


@pytest.fixture(scope="module")
def train() -> Any:
    import tfdq.cli.commands  # noqa: F401

    return typer.main.get_command(app).commands["train"]  # type: ignore[attr-defined]


def test_every_field_has_an_option_of_its_own(train: Any) -> None:
    options = {option.opts[0]: option for option in train.params}
    names = [option_name(place) for place in PLACES]
    assert set(names) <= set(options)
    assert len(set(names)) == len(names)
    for place, field in fields(*TRAINED).items():
        expected = SPELLINGS[place].help if place in SPELLINGS else None
        assert options[option_name(place)].help == (expected or field.description), place
        assert field.description, place


def test_only_what_a_run_records_has_none() -> None:
    assert set(SPELLINGS) <= set(PLACES)
    every = {
        f"{section}.{name}"
        for section in TRAINED
        for name in type(RunSettings.model_fields[section].default).model_fields
    }
    assert every - set(PLACES) == RECORDED


@pytest.mark.parametrize(
    ("words", "place", "expected"),
    [
        (["--eps", "16/255"], "adversarial.eps", 16.0),
        (["--image-size", "32x48"], "data.image_size", (32, 48)),
        (["--target", "1/k"], "penalty.target", "1/k"),
        (["--target", "0.5"], "penalty.target", 0.5),
        (["--target", "1/2"], "penalty.target", 0.5),
        (["--penalty", "conv_orthogonal"], "penalty.target", 1.0),
        (["--ramp", "0,2.5"], "penalty.ramp", (0.0, 2.5)),
        (["--layer-bits", "a=4", "--layer-bits", "b=[8, 2]"], "quantization.layer_bits",
         {"a": 4, "b": (8, 2)}),
        (["--model-option", "width=8"], "model.options", {"width": 8}),
        (["--first-last-bits", "8"], "quantization.first_last_bits", 8),
        (["--augment", "pad_crop"], "training.augment", "pad_crop"),
    ],
)  # fmt: skip
def test_options_give_the_fields(
    words: list[str],
    place: str,
    expected: Any,
    train: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As read, and once more from the recipe that is written of it."""
    seen: list[RunSettings] = []

    def settings(given: dict[str, Any]) -> RunSettings:
        seen.append(settings_of(given))
        raise typer.Abort

    monkeypatch.setattr("tfdq.cli.commands.settings_of", settings)
    with pytest.raises(typer.Abort):
        train.main(["--out", str(tmp_path / "run"), *words], standalone_mode=False)
    (tmp_path / "recipe.toml").write_text(recipe_of_run(seen[0], 5, 'A "run"'), encoding="utf-8")
    recipe = load_recipe(tmp_path / "recipe.toml")
    section, _, name = place.partition(".")
    for found in (seen[0], recipe.variants[0].settings):
        assert getattr(getattr(found, section), name) == expected
    assert recipe.variants[0].settings.training_key(5) == seen[0].training_key(5)
    assert (recipe.content.seeds, recipe.content.first_seed) == (1, 5)


def test_a_data_set_wins_over_a_folder_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("digits", "photos"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    for name, expected in (("digits", "digits"), ("photos", str(tmp_path / "photos"))):
        recipe = tmp_path / "recipe.toml"
        recipe.write_text(recipe_of_run(settings_of({"data.name": name}), 0, "T"), encoding="utf-8")
        assert load_recipe(recipe).variants[0].settings.data.name == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--augment", "foo"], "Invalid value for '--augment': 'foo' is not one of 'none', "),
        (["--ramp", "5"], "--ramp must be two epochs, begin and end, such as 1,3, got [5]"),
        (["--ramp", "soon"], "--ramp must be two epochs, begin and end, such as 1,3, got '[soon]'"),
        (["--ramp", "1,3", "--beta", "0"], "--ramp needs a penalty: set --beta above 0"),
        (["--target", "foo"], "--target takes 1/k or a number above 0, got 'foo'"),
        (["--target", "0"], "--target takes 1/k or a number above 0, got '0'"),
        (["--start", "model.name", "--model-option", "a=1"], "leave them or --start out"),
    ],
)
def test_mistakes_are_said_of_options(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["train", "--out", str(tmp_path / "run"), *words])
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said


def test_the_help_shows_defaults_that_commands_do_not_get(
    train: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    train.main(["--help"], standalone_mode=False)
    shown = capsys.readouterr().out
    for default in ("small_cnn", "0.002", "8/255"):
        assert f"[default: {default}]" in shown


def test_the_demo_has_quantized_forms(train: Any) -> None:
    demo = typer.main.get_command(app).commands["demo"]  # type: ignore[attr-defined]
    (bits,) = (option for option in demo.params if option.opts == ["--activation-bits"])
    assert bits.help == "Bits behind a ReLU, 1..8, of the quantized forms."
