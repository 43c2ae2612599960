"""The commands of the zoo: list, get, check, add."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from tfdq.cli.app import app
from tfdq.cli.options import DataDirOption, JsonOption, complete_zoo
from tfdq.cli.output import output, print_result

zoo = typer.Typer(no_args_is_help=True, help="Trained integer files with cards to check them by.")
app.add_typer(zoo, name="zoo")

NameArgument = Annotated[
    str, typer.Argument(help="Of the file; see `tfdq zoo list`.", autocompletion=complete_zoo)
]
FolderOption = Annotated[
    Path | None,
    typer.Option("--zoo", help="Folder of the zoo; the one that comes with tfdq by default."),
]


@zoo.command("list", epilog="Example:  tfdq zoo list")
def list_(folder: FolderOption = None, as_json: JsonOption = False) -> None:
    """List the files, with what is known of each."""
    from tfdq.experiments.zoo import read_cards

    cards = read_cards(folder)
    lines = []
    for name, card in cards.items():
        settings, bits = card.settings, card.settings.quantization.activation_bits
        worst = min(card.robust, key=lambda figure: figure.accuracy, default=None)
        robust = "" if worst is None else f", {worst.accuracy:.1%} at {worst.eps:g}/255"
        lines.append(
            f"{name}: {settings.data.name}, {settings.model.network}, {bits}-bit activations, "
            f"{card.bytes / 1024:.0f} KiB, clean {card.clean.accuracy:.1%}{robust}"
        )
    figures = {name: card.model_dump(mode="json") for name, card in cards.items()}
    print_result(figures, "\n".join(lines) or "the zoo is empty", as_json)


@zoo.command(epilog="Example:  tfdq zoo get fashion-dq4 model.tflite")
def get(
    name: NameArgument,
    target: Annotated[Path, typer.Argument(help="File or folder to copy it to.")] = Path(),
    folder: FolderOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy a file out of the zoo."""
    from tfdq.experiments.zoo import copy_file

    path = copy_file(name, target, folder)
    print_result({"file": str(path)}, str(path), as_json)


@zoo.command(epilog="Example:  tfdq zoo check fashion-dq4")
def check(
    name: NameArgument,
    folder: FolderOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a card's figures again from its file. Exit status 1 if one differs."""
    from dataclasses import asdict

    from tfdq.experiments.zoo import check as check_card

    found = check_card(name, folder, data_dir, _tell)
    lines = [
        f"{'ok ' if finding.good else 'BAD'}  {finding.what}: {_shown(finding.recorded)} recorded, "
        f"{_shown(finding.found)} found"
        for finding in found
    ]
    print_result([asdict(finding) for finding in found], "\n".join(lines), as_json)
    if not all(finding.good for finding in found):
        raise typer.Exit(1)


@zoo.command(epilog="Example:  tfdq zoo add runs/experiments/runs/0123456789ab fashion-dq4")
def add(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run of `tfdq reproduce`.")],
    name: Annotated[str, typer.Argument(help="Of the file in the zoo.")],
    command: Annotated[str, typer.Option("--command", help="That made the run.")],
    folder: FolderOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put the integer file of a run into the zoo, with its card."""
    from tfdq.experiments.zoo import make_card, zoo_folder

    place = zoo_folder() if folder is None else folder
    card = make_card(run, name, place, command)
    text = f"{place / name}.tflite: {card.bytes:,} bytes, clean {card.clean.accuracy:.1%}"
    print_result(card.model_dump(mode="json"), text, as_json)


def _shown(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _tell(note: str) -> None:
    if not output().quiet:
        print(note, file=sys.stderr, flush=True)
