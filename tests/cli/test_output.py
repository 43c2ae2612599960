"""What is said where: results on stdout, all else on stderr, and no more than was asked for."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from tfdq.cli import main, options
from tfdq.cli.app import app
from tfdq.experiments.run_folder import DivergedError
from tfdq.mistakes import UnknownNameError, WrongTypeError

TFDQ = Path(sys.executable).with_name("tfdq")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an exported, untrained network."""
    import tfdq
    from tfdq.models import small_cnn
    from tflite_export import convert

    qat = tfdq.quantize_model(small_cnn(), activation_bits=4, input_range=(0.0, 1.0))
    path = tmp_path_factory.mktemp("output") / "model.tflite"
    images = np.random.default_rng(0).uniform(size=(64, 8, 8, 1)).astype(np.float32)
    tfdq.calibrate(qat, images)
    convert(qat, path)
    return path


def tfdq(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


def in_process(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a shell does, without the settings the tests make."""
    known = {k: v for k, v in os.environ.items() if not k.startswith(("TF_", "COV"))}
    return subprocess.run(
        [TFDQ, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**known, **environment},
    )


def test_a_command_prints_its_result_and_nothing_else(file: Path) -> None:
    done = in_process("run", file, "--limit", 20, "--json")
    assert done.returncode == 0
    assert done.stderr == ""
    assert json.loads(done.stdout)["images"] == 20
    assert done.stdout.count("\n") == 1


def test_verbose_shows_what_the_libraries_say(file: Path) -> None:
    done = in_process("run", file, "--limit", 20, "--json", "--verbose")
    assert done.returncode == 0
    assert "XNNPACK" in done.stderr
    assert json.loads(done.stdout)["images"] == 20


@pytest.fixture(autouse=True)
def _no_model_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that are made to fail, or are interrupted, open nothing."""
    for module in ("commands", "robustness"):
        monkeypatch.setattr(f"tfdq.cli.{module}.check_call", lambda *_: None)


def _command_that(monkeypatch: pytest.MonkeyPatch, error: BaseException | Warning) -> None:
    """Make `tfdq run` end with an error, or warn."""

    def fail(*arguments: object, **settings: object) -> None:
        if isinstance(error, Warning):
            warnings.warn_explicit(error, None, str(Path("lib") / "tfdq" / "x.py"), 1)
            raise ValueError("afterwards")
        raise error

    monkeypatch.setattr("tfdq.cli.commands.open_model", fail)


# Raised here, not by a raise statement of ours: the last three say nothing about the input.
@pytest.mark.parametrize(
    "error",
    [
        AttributeError("no x"),
        ZeroDivisionError("1/0"),
        TypeError("got 3 arguments"),
        KeyError("x"),
        RuntimeError("out of streams"),
    ],
)
def test_a_fault_is_one_line_and_status_3(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _command_that(monkeypatch, error)
    assert tfdq("run", "x.keras") == 3
    said = capsys.readouterr().err
    assert said.startswith(f"error: {type(error).__name__}: {error.args[0]}")
    assert "--debug" in said
    assert said.count("\n") == 1


def test_pythons_own_error_over_our_code_is_a_fault(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tfdq.data import steps_per_epoch

    monkeypatch.setattr("tfdq.cli.commands.open_model", lambda *_: steps_per_epoch(None, 0))
    assert tfdq("run", "x.keras") == 3
    assert "a fault of tfdq" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [WrongTypeError, UnknownNameError, DivergedError])
def test_an_error_about_the_input_is_no_fault_whatever_its_kind(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _command_that(monkeypatch, kind("give another"))
    assert tfdq("run", "x.keras") == 2
    assert capsys.readouterr().err == "error: give another\n"


@pytest.mark.parametrize(("error", "status"), [(ValueError("wrong"), 2), (TypeError("odd"), 3)])
def test_debug_shows_the_traceback_and_keeps_the_status(
    error: Exception,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _command_that(monkeypatch, error)
    assert tfdq("run", "x.keras", "--debug") == status
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert said.splitlines()[-1].startswith("error: ")


def test_out_of_memory_says_what_to_lower(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _command_that(monkeypatch, MemoryError("4 GiB"))
    assert tfdq("run", "x.keras") == 2
    assert "lower --batch-size or --limit" in capsys.readouterr().err


@pytest.mark.parametrize("where", [("--quiet", "run"), ("run", "--quiet"), ("run", "-q")])
def test_quiet_may_stand_anywhere_and_drops_warnings(
    where: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _command_that(monkeypatch, UserWarning("beware"))
    assert tfdq("run", "x.keras") == 2
    assert capsys.readouterr().err == "warning: beware\nerror: afterwards\n"
    assert tfdq(*where, "x.keras") == 2
    assert capsys.readouterr().err == "error: afterwards\n"


def test_quiet_reaches_the_progress_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    from tfdq.cli.output import progress

    shown = []
    monkeypatch.setattr(
        "tfdq.cli.commands.open_model", lambda *_: shown.append(progress()) or 1 / 0
    )
    tfdq("run", "x.keras")
    tfdq("run", "x.keras", "-q")
    assert shown == [None, False]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "--out", "there"), "nothing was written"),
        (("train", "--out", "begun"), "it was before the first checkpoint"),
        (("evaluate", "x.keras"), "with --out FOLDER finished pieces would be"),
        (("evaluate", "x.keras", "--out", "there"), "finished pieces are kept in there"),
    ],
)
def test_ctrl_c_says_what_is_left(
    arguments: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    for place in ("experiments.networks.load_images", "cli.robustness.open_model"):
        monkeypatch.setattr(f"tfdq.{place}", interrupt)
    if "begun" in arguments:
        monkeypatch.undo()
        monkeypatch.setattr("tfdq.experiments.classifier.train_classifier", interrupt)
    assert tfdq(*arguments) == 130
    said = capsys.readouterr().err
    assert message in said
    assert "the same command" in said or "--out" in said


def test_a_reader_that_has_enough_gets_no_complaint() -> None:
    command = ["bash", "-c", f"'{TFDQ}' --help | true"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("tfdq ev", {"evaluate"}),
        ("tfdq attack m.keras --attack apgd", {"apgd-ce", "apgd-dlr", "apgd-t"}),
        ("tfdq train --model resnet2", {"resnet20"}),
        ("tfdq run m.keras --data svhn", {"svhn_cropped", "svhn_cropped+extra"}),
        ("tfdq train --on dep", {"deployed"}),
    ],
)
def test_the_shell_completes(words: str, expected: set[str]) -> None:
    position = str(len(words.split()) - 1)
    done = in_process(_TFDQ_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=position)
    assert set(done.stdout.split()) == expected


def test_the_names_to_complete_are_those_there_are() -> None:
    from tfdq import data, models
    from tfdq.robustness import available_attacks

    assert set(options.DATA_NAMES) == set(data.names())
    assert set(options.MODELS) == set(models.names())
    # Other tests register attacks of their own.
    known = {
        name
        for name, spec in available_attacks().items()
        if spec.function.__module__.startswith("tfdq.")
    }
    assert set(options.ATTACK_NAMES) == known


def test_every_command_has_help_example_and_json() -> None:
    for command in app.registered_commands:
        callback = command.callback
        assert callback is not None
        assert callback.__doc__
        assert str(command.epilog).startswith(f"Example:  tfdq {callback.__name__}")
        assert "as_json" in callback.__annotations__, callback.__name__
