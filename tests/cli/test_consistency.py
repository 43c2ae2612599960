"""One option means one thing in every command that has it."""

from __future__ import annotations

import importlib
import pkgutil
from collections import defaultdict
from typing import Any

import pytest
import typer

import tfdq.cli
from tfdq.cli.app import app

# What --out writes differs, and is said for each; so are the names in a help of one's own.
OWN_HELP = {"--set", "--out", "--data", "--limit", "--help", "--name", "--only"}


@pytest.fixture(scope="module")
def commands() -> dict[str, Any]:
    for module in pkgutil.iter_modules(tfdq.cli.__path__):
        importlib.import_module(f"tfdq.cli.{module.name}")
    return dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


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
        ("--surrogate", {"--trust"}),
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
