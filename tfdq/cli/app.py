"""Start the command line: quiet TensorFlow, one line for a mistake, exit statuses.

Exit status: 0 good; 1 the work was done and its answer is no (an audit that failed); 2 a mistake in
the call or its input; 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer

from tfdq._version import __version__

app = typer.Typer(
    name="tfdq",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Quantize Keras image models so that they are robust, and prove it.",
    epilog="Start here:  [bold]tfdq demo[/bold]",
)

INTERRUPTED = 130


def _version(show: bool) -> None:
    if show:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
    debug: bool = typer.Option(False, "--debug", help="Show where an error arose."),
) -> None:
    os.environ["TFDQ_DEBUG"] = "1" if debug else ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    Args:
        arguments: without the program's name; None for those of the process.
    """
    # Read by TensorFlow and Keras when a command loads them.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    sys.exit(_run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    # The commands register themselves; they load nothing heavy until one of them runs.
    import tfdq.cli.commands
    import tfdq.cli.robustness  # noqa: F401

    try:
        status = app(
            args=None if arguments is None else list(arguments),
            prog_name="tfdq",
            standalone_mode=False,
        )
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        if len(arguments if arguments is not None else sys.argv[1:]) == 0:
            print(error.format_message())
            return 0
        hint = f" (see {context.command_path} --help)" if context is not None else ""
        print(f"error: {_one_line(error)}{hint}", file=sys.stderr)
        return error.exit_code
    except typer.Abort:
        status = INTERRUPTED
    except (ValueError, TypeError, KeyError, OSError, ImportError, RuntimeError) as error:
        if os.environ.get("TFDQ_DEBUG"):
            raise
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return 2
    if status == INTERRUPTED:
        print("interrupted; what was finished is kept, start again to go on", file=sys.stderr)
    return status if isinstance(status, int) else 0


def _one_line(error: Exception) -> str:
    if isinstance(error, typer.TyperException):
        text = error.format_message()
    else:
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split()) or type(error).__name__
