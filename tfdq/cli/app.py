"""The command line's application: what its commands register with, and their common options."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from tfdq._version import __version__
from tfdq.cli.listing import ENTRIES


class _Deferred(TyperCommand):
    """A command that is listed by its summary, and imported when it is called."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        """Return the context of the command itself, for its arguments."""
        import_module(ENTRIES[str(self.name)].module)
        group = typer.main.get_command(app)
        assert isinstance(group, TyperGroup)
        command = group.commands[str(self.name)]
        return command.make_context(info_name, args, parent=parent, **extra)


class _Commands(TyperGroup):
    """All commands, those that are not imported yet as their summaries."""

    def __init__(self, *, commands: Any = None, **options: Any) -> None:
        """Add what is listed to the commands that are imported."""
        deferred: dict[str, Any] = {
            name: _Deferred(name, callback=None, help=entry.summary)
            for name, entry in ENTRIES.items()
        }
        super().__init__(commands=deferred | dict(commands or {}), **options)


app = typer.Typer(
    name="tfdq",
    cls=_Commands,
    no_args_is_help=True,
    context_settings={"help_option_names": ["--help", "-h"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Quantize Keras image models so that they are robust, and prove it.",
    epilog=(
        "Start here:  [bold]tfdq demo[/bold]\n\n"
        "Results go to stdout, progress and messages to stderr. Exit status: 0 good; 1 the work "
        "was done and its answer is no; 2 a mistake in the call or its input; 3 a fault of tfdq; "
        "130 interrupted, 143 terminated."
    ),
)

GOOD, ANSWER_IS_NO, MISTAKE, FAULT, INTERRUPTED = 0, 1, 2, 3, 130


def _version(show: bool) -> None:
    if show:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
    quiet: bool = typer.Option(
        False, "--quiet", "-q", help="Results and errors only. This and the next two: anywhere."
    ),
    verbose: bool = typer.Option(
        False, "--verbose", "-v", help="Notices and warnings of the libraries, too."
    ),
    debug: bool = typer.Option(False, "--debug", help="--verbose, and where an error arose."),
) -> None:
    """Take the options that all commands share; `_run` has read their values already."""
