"""What goes to stdout and to stderr: results, progress, warnings, the notices of libraries.

Results go to stdout, so that they can be piped; all else to stderr. The start-up notices of
TensorFlow and LiteRT are turned away while a command runs.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TextIO

import typer

from tflite_export.quiet_stderr import native_stderr_turned_away

_OURS = (os.sep + "tfdq" + os.sep, os.sep + "tflite_export" + os.sep)


@dataclass
class Output:
    """How much a run of the command line says.

    Attributes:
        quiet: no progress and no warnings; results and errors only.
        verbose: the notices and warnings of the libraries as well.
        debug: verbose, and the traceback of an error.
        after_interrupt: what Ctrl-C leaves behind, and how to go on; or what finds that out then.
        warned: the warnings shown so far.
    """

    quiet: bool = False
    verbose: bool = False
    debug: bool = False
    after_interrupt: str | Callable[[], str] = "nothing was written; the same command starts again"
    warned: set[str] = field(default_factory=set)


_OUTPUT: ContextVar[Output] = ContextVar("output")


def output() -> Output:
    """Return how much the present run of the command line says; outside of one, the default."""
    return _OUTPUT.get(Output())


@contextmanager
def output_of(run: Output) -> Iterator[None]:
    """Let a run of the command line say as much as ``run`` allows while the block lasts."""
    token = _OUTPUT.set(run)
    try:
        yield
    finally:
        _OUTPUT.reset(token)


def progress() -> bool | None:
    """Return whether to show progress bars: not if quiet; None leaves it to the terminal."""
    return False if output().quiet else None


def print_result(figures: Any, text: str, as_json: bool) -> None:
    """Print a result on stdout.

    Args:
        figures: what JSON can hold; or text that is JSON.
        text: the same for people.
        as_json: print the figures, and nothing else.
    """
    if not as_json:
        typer.echo(text)
    elif isinstance(figures, str):
        typer.echo(figures)
    else:
        typer.echo(json.dumps(figures, default=str))


def warn(text: str, run: Output | None = None) -> None:
    """Print a warning on stderr, in one line; not if quiet.

    Args:
        text: the warning.
        run: whose it is; the present one by default.
    """
    if not (run or output()).quiet:
        print(f"warning: {text}", file=sys.stderr)


def note(text: str) -> None:
    """Print what was found or chosen on the way on stderr, in one line; not if quiet."""
    if not output().quiet:
        print(text, file=sys.stderr, flush=True)


@contextmanager
def calm() -> Iterator[None]:
    """Keep the notices and warnings of libraries from the user while the block runs."""
    with ExitStack() as stack:
        if not output().verbose:
            stack.enter_context(_loggers_at_error("tensorflow", "absl"))
            stack.enter_context(native_stderr_turned_away())
            stack.enter_context(warnings.catch_warnings())
            # Bound here: other threads of the run don't see its context.
            warnings.showwarning = partial(_show_warning, output())
        yield


def _show_warning(
    run: Output,
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning of our own in one line; drop those that libraries address to us."""
    ours = category.__module__.split(".")[0] in ("tfdq", "tflite_export")
    text = " ".join(str(message).split())
    # Once: a command may build a model several times.
    if text not in run.warned and (ours or any(part in filename for part in _OURS)):
        warn(text, run)
        run.warned.add(text)


@contextmanager
def _loggers_at_error(*names: str) -> Iterator[None]:
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
