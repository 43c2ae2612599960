"""The commands of the zoo: list, get, check, add, leaderboard."""

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
    from tfdq.zoo import read_cards

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
    from tfdq.zoo.cards import copy_file

    path = copy_file(name, target, folder)
    print_result({"file": str(path)}, str(path), as_json)


@zoo.command(epilog="Example:  tfdq zoo check fashion-dq4")
def check(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Of the files; all of the zoo by default.", autocompletion=complete_zoo
        ),
    ] = None,
    folder: FolderOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the figures of cards again from their files. Exit status 1 if one differs."""
    from dataclasses import asdict

    from tfdq.zoo import check as check_card
    from tfdq.zoo import read_cards
    from tfdq.zoo.cards import find_card

    chosen = names or list(read_cards(folder))
    for name in chosen:
        find_card(name, folder)
    lines, found = [], []
    for name in chosen:
        for finding in check_card(name, folder, data_dir, _tell):
            found.append({"card": name, **asdict(finding)})
            lines.append(
                f"{'ok ' if finding.good else 'BAD'}  {finding.what}: {_shown(finding.recorded)} "
                f"recorded, {_shown(finding.found)} found"
            )
            if len(chosen) > 1:
                lines[-1] = f"{name}: {lines[-1]}"
    print_result(found, "\n".join(lines) or "the zoo is empty", as_json)
    if not all(finding["good"] for finding in found):
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
    from tfdq.zoo.cards import zoo_folder
    from tfdq.zoo.making import make_card

    place = zoo_folder() if folder is None else folder
    card = make_card(run, name, place, command)
    text = f"{place / name}.tflite: {card.bytes:,} bytes, clean {card.clean.accuracy:.1%}"
    print_result(card.model_dump(mode="json"), text, as_json)


@zoo.command(epilog="Example:  tfdq zoo leaderboard --out docs/leaderboard.md")
def leaderboard(
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Page to put it into, between its two comments."),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit status 1 if the page is stale.")
    ] = False,
    folder: FolderOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the leaderboard of the zoo's cards, or bring it up to date in a page."""
    from tfdq.zoo import read_cards
    from tfdq.zoo.leaderboard import BEGIN, END, table, update

    cards = read_cards(folder).values()
    if out is None:
        if fresh:
            raise typer.BadParameter("--check needs the page: give --out PAGE")
        print_result({"table": table(cards)}, table(cards), as_json)
        return
    if not out.is_file():
        raise FileNotFoundError(
            f"there is no page {str(out)!r}: make one with a line {BEGIN} and a line {END}, "
            "between which the leaderboard goes"
        )
    present = out.read_text(encoding="utf-8")
    expected = update(present, cards, out)
    current = present == expected
    if not fresh:
        out.write_text(expected, encoding="utf-8")
    state = (
        "up to date" if current or not fresh else f"stale: run `tfdq zoo leaderboard --out {out}`"
    )
    print_result({"fresh": current or not fresh}, f"{out} is {state}", as_json)
    if fresh and not current:
        raise typer.Exit(1)


def _shown(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _tell(note: str) -> None:
    if not output().quiet:
        print(note, file=sys.stderr, flush=True)
