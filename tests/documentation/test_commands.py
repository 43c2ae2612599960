"""Every command line of the documentation is one that the programs take."""

from __future__ import annotations

import importlib
import pkgutil
import re
from typing import Any

import pytest
import typer

from tests.documentation.markdown import ROOT, Block, blocks, commands, pages

LANGUAGES = {
    "",
    "bash",
    "python",
    "console",
    "kotlin",
    "swift",
    "cpp",
    "json",
    "toml",
    "math",
    "text",
}
BESIDE = [
    "edge/README.md",
    "tfdq/zoo/files/README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
]
BLOCKS = [block for page in [*pages(), *BESIDE] for block in blocks(page)]
COMMANDS = [
    pytest.param(command, id=f"{block.page}:{block.line}: {' '.join(command)[:60]}")
    for block in BLOCKS
    if block.language in ("", "bash", "console")
    for command in commands(block)
]


def test_there_are_commands() -> None:
    programs = {command.values[0][0] for command in COMMANDS}  # type: ignore[index]
    assert {"tfdq", "python", "pip", "make"} <= programs
    assert {"README.md", "edge/README.md"} <= {block.page for block in BLOCKS}


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block.page}:{block.line}")
def test_every_block_says_its_language(block: Block) -> None:
    assert block.language in LANGUAGES
    if block.language == "":
        # Output and commands only: code would be missed by the tests of the examples.
        assert not re.search(r"^(import|from) \w", block.text, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command: list[str]) -> None:
    program, *arguments = command
    if program == "tfdq":
        check_tfdq(arguments)
    elif program == "python":
        check_tflite_export(arguments[2:])
    elif program == "pip":
        check_install(arguments[1:])
    else:
        targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        assert {word for word in arguments if "=" not in word} <= targets


def check_tfdq(arguments: list[str]) -> None:
    """Parse a command line with the program's own parser, without running anything."""
    import tfdq.cli
    from tfdq.cli.app import app
    from tfdq.cli.entry import _shared_first

    for module in pkgutil.iter_modules(tfdq.cli.__path__):
        importlib.import_module(f"tfdq.cli.{module.name}")
    _, (name, *rest) = _shared_first(arguments)
    if name == "COMMAND" or name.startswith("-"):
        return
    command: Any = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    while hasattr(command, "commands") and rest:
        name, *rest = rest
        command = command.commands[name]
    if rest and rest != ["--help"]:
        command.make_context(f"tfdq {name}", rest)


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["zoo", "nonsense"], ["zoo", "list", "--foo"], ["demo", "--foo"]]
)
def test_commands_that_do_not_exist_are_found_out(arguments: list[str]) -> None:
    with pytest.raises((KeyError, typer.TyperException)):
        check_tfdq(arguments)


def check_tflite_export(arguments: list[str]) -> None:
    from tflite_export.__main__ import _parser

    _parser().parse_args(arguments)


def check_install(arguments: list[str]) -> None:
    """The extras of our own distributions exist."""
    for distribution, file in (("tfdq", "pyproject.toml"), ("tfdq-edge", "edge/pyproject.toml")):
        text = (ROOT / file).read_text(encoding="utf-8")
        section = text.split("[project.optional-dependencies]")[1].split("\n[")[0]
        known = set(re.findall(r"^([\w-]+) = ", section, re.MULTILINE))
        for argument in arguments:
            match = re.fullmatch(rf"(?:{distribution}|\.)\[([\w,-]+)\]", argument)
            if match:
                assert set(match[1].split(",")) <= known
