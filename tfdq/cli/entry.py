"""Start the command line: common options, one line for a mistake, exit statuses."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress

import typer

from tfdq._extras import explained
from tfdq.cli.app import FAULT, GOOD, INTERRUPTED, MISTAKE, app
from tfdq.cli.output import Output, calm, output_of
from tfdq.mistakes import Mistake
from tfdq.which_keras import installed
from tflite_export.endings import Ended

_ANYWHERE = ("--quiet", "-q", "--verbose", "-v", "--debug")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    Args:
        arguments: without the program's name; None for those of the process.
    """
    sys.exit(_run(list(sys.argv[1:] if arguments is None else arguments)))


def _run(arguments: list[str]) -> int:
    shared, arguments = _shared_first(arguments)
    run = Output(
        quiet=bool({"--quiet", "-q"} & set(shared)),
        verbose=bool({"--verbose", "-v", "--debug"} & set(shared)),
        debug="--debug" in shared,
    )
    # Read by TensorFlow and Keras when a command loads them.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "0" if run.verbose else "3")
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    _choose_backend()
    ended = Ended()
    try:
        with output_of(run), calm(), ended.by_signals():
            status = app(
                args=[*shared, *arguments] if arguments else shared,
                prog_name="tfdq",
                standalone_mode=False,
            )
    except typer.TyperException as error:
        return _usage(error, not arguments)
    except (typer.Abort, KeyboardInterrupt):
        status = INTERRUPTED
    except Exception as error:
        if run.debug:
            traceback.print_exc()
        return _report(error)
    if status == INTERRUPTED:
        left = run.after_interrupt
        said = f"{ended.word}; {left if isinstance(left, str) else left()}"
        # Where the terminal was closed nobody reads it.
        with suppress(OSError):
            print(said, file=sys.stderr, flush=True)
        return ended.status
    return status if isinstance(status, int) else GOOD


def _choose_backend() -> None:
    """Let Keras run on the one backend that is installed, where TensorFlow, its own choice, is not.

    What ``KERAS_BACKEND`` says stands; between two Keras chooses, by its configuration file.
    """
    others = _other_backends()
    if len(others) == 1:
        os.environ["KERAS_BACKEND"] = others[0]


def _other_backends() -> list[str]:
    """Return the backends to choose from, where nothing is chosen and TensorFlow not installed."""
    if "KERAS_BACKEND" in os.environ or installed("tensorflow"):
        return []
    return [name for name in ("jax", "torch") if installed(name)]


def _shared_first(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Part the options that may stand anywhere from all others."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    shared = [text for text in arguments[:end] if text in _ANYWHERE]
    others = [text for text in arguments[:end] if text not in _ANYWHERE]
    return shared, others + arguments[end:]


def _usage(error: typer.TyperException, bare: bool) -> int:
    """Say what is wrong with the call; a call without a command gets the help."""
    if type(error).__name__ == "NoArgsIsHelpError":
        # It has been printed.
        return GOOD
    if bare:
        app(args=["--help"], prog_name="tfdq", standalone_mode=False)
        return GOOD
    context = getattr(error, "ctx", None)
    hint = f" (see {context.command_path} --help)" if context is not None else ""
    # Pydantic's word for what a type refuses.
    message = " ".join(error.format_message().replace(": Value error, ", ": ").split())
    print(f"error: {message}{hint}", file=sys.stderr)
    return error.exit_code


def _report(error: Exception) -> int:
    """Say what went wrong in one line."""
    if isinstance(error, ModuleNotFoundError):
        error = explained(error, "this command")
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    text = " ".join(text.split()) or type(error).__name__
    if isinstance(error, ImportError) and "Keras runs on tensorflow" in text:
        others = _other_backends()
        if others:
            text = (
                "Keras runs on tensorflow, which is not installed: set "
                f"KERAS_BACKEND={' or '.join(others)}, which are installed"
            )
    if isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError":
        text = f"out of memory; lower --batch-size or --limit ({text[:200]})"
    elif not isinstance(error, (Mistake, ValueError, OSError, ImportError)):
        print(
            f"error: {type(error).__name__}: {text} (a fault of tfdq or of a library: please "
            "report it with the output of the same command with --debug)",
            file=sys.stderr,
        )
        return FAULT
    print(f"error: {text}", file=sys.stderr)
    return MISTAKE
