"""One option means one thing in every command that has it."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import re
from collections import defaultdict
from typing import Any

import pytest
import typer

import tfdq.cli
from tfdq.cli.app import app
from tflite_export.__main__ import _parser

# What --out writes differs, and is said for each; so are the names in a help of your own.
# `tfdq demo` always makes quantized forms: 0 activation bits, a float network, is refused there.
OWN_HELP = {
    "--set",
    "--out",
    "--data",
    "--limit",
    "--help",
    "--name",
    "--only",
    "--activation-bits",
}


@pytest.fixture(scope="module")
def commands() -> dict[str, Any]:
    for module in pkgutil.iter_modules(tfdq.cli.__path__):
        importlib.import_module(f"tfdq.cli.{module.name}")
    found: dict[str, Any] = dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    # A group's commands count, each by itself.
    for name in [name for name, command in found.items() if hasattr(command, "commands")]:
        group = found.pop(name)
        found.update({f"{name} {inner}": command for inner, command in group.commands.items()})
    return found


@pytest.fixture(scope="module")
def file_commands() -> dict[str, argparse.ArgumentParser]:
    """Return the commands of `python -m tflite_export`."""
    (choices,) = [
        dict(action.choices) for action in _parser()._actions if isinstance(action.choices, dict)
    ]
    return choices


def file_options(command: argparse.ArgumentParser) -> dict[str, str]:
    return {
        name: str(action.help)
        for action in command._actions
        for name in action.option_strings
        if name.startswith("--")
    }


def options(command: Any) -> dict[str, Any]:
    return {name: option for option in command.params for name in option.opts if "--" in name}


def test_the_same_name_has_the_same_help(commands: dict[str, Any]) -> None:
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for command_name, command in commands.items():
        for name, option in options(command).items():
            if name not in OWN_HELP:
                found[name][str(option.help)].append(command_name)
    for name, kinds in found.items():
        assert len(kinds) == 1, f"{name} means {dict(kinds)}"


@pytest.mark.parametrize(
    ("having", "needs"),
    [
        ("--image-size", {"--data", "--data-dir", "--seed"}),
        ("--data", {"--data-dir", "--image-size", "--seed"}),
        ("--surrogate", {"--trust", "--cost-limit"}),
        ("--start", {"--trust"}),
        ("--eps", {"--seed"}),
    ],
)
def test_options_that_go_together(having: str, needs: set[str], commands: dict[str, Any]) -> None:
    for name, command in commands.items():
        if having in options(command):
            assert needs <= set(options(command)), f"tfdq {name}"


def test_every_option_says_what_it_is(commands: dict[str, Any]) -> None:
    for name, command in commands.items():
        for option_name, option in options(command).items():
            assert option.help, f"tfdq {name} {option_name}"


def test_every_command_prints_json(
    commands: dict[str, Any], file_commands: dict[str, argparse.ArgumentParser]
) -> None:
    assert len(commands) >= 15
    for name, command in commands.items():
        assert "--json" in options(command), f"tfdq {name}"
    assert set(file_commands) == {"run", "benchmark", "inspect", "verify", "selftest"}
    for name, parser in file_commands.items():
        shared = {"--json", "--quiet", "--verbose", "--debug"}
        assert shared <= set(file_options(parser)), f"python -m tflite_export {name}"


def test_a_command_that_opens_models_can_trust_them(commands: dict[str, Any]) -> None:
    for name, command in commands.items():
        arguments = {p.name for p in command.params if p.param_type_name == "argument"}
        if arguments & {"model", "models", "runs"}:
            assert "--trust" in options(command), f"tfdq {name}"


@pytest.mark.parametrize("name", ["run", "attack", "evaluate", "audit", "certify", "report"])
def test_a_command_that_reads_tflite_files_takes_limits(
    name: str, commands: dict[str, Any]
) -> None:
    assert "--cost-limit" in options(commands[name])


def test_one_thing_has_one_name(
    commands: dict[str, Any], file_commands: dict[str, argparse.ArgumentParser]
) -> None:
    """The words that other programs have for these things are not options."""
    synonyms = {
        "--limit": {"--images", "--samples", "--examples", "--num-images"},
        "--out": {"--output", "--outdir", "--folder"},
        "--batch-size": {"--batch"},
        "--data": {"--dataset"},
        "--eps": {"--epsilon"},
        "--learning-rate": {"--lr"},
        "--activation-bits": {"--bits"},
    }
    for name, command in commands.items():
        for wanted, others in synonyms.items():
            assert not others & set(options(command)), f"tfdq {name}: call it {wanted}"
    for name, parser in file_commands.items():
        # There, --images names a file.
        others = set().union(*synonyms.values()) - {"--images"}
        assert not others & set(file_options(parser)), f"python -m tflite_export {name}"


def test_both_programs_mean_the_same(
    commands: dict[str, Any], file_commands: dict[str, argparse.ArgumentParser]
) -> None:
    ours: dict[str, set[str]] = defaultdict(set)
    for command in commands.values():
        for name, option in options(command).items():
            ours[name].add(str(option.help).lower().rstrip("."))
    for name, parser in file_commands.items():
        for option, text in file_options(parser).items():
            # What --out writes is said for each; --threads and --batch-size may be several there.
            if option in ours and option not in {"--out", "--threads", "--batch-size", "--help"}:
                assert {text.lower()} == ours[option], f"python -m tflite_export {name} {option}"


@pytest.mark.parametrize("status", ["0 good", "1 the", "2 a mistake", "3 a fault", "130 interr"])
def test_exit_statuses_are_documented_alike(status: str) -> None:
    group = typer.main.get_command(app)
    assert status in re.sub(r"\s+", " ", str(group.epilog))
    assert status in re.sub(r"\s+", " ", str(_parser().epilog))
