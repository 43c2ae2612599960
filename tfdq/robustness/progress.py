"""A progress bar on stderr, or none."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[str], None]


@contextmanager
def progress_bar(title: str, total: int | None, show: bool | None = None) -> Iterator[Advance]:
    """Show a progress bar on stderr while the block runs.

    Args:
        title: What is being done.
        total: Number of steps; None if it is not known beforehand.
        show: Whether to show it; None shows it if stderr is a terminal.

    Yields:
        A function to call after each step, with a note on what comes next.
    """
    if show is None:
        show = sys.stderr.isatty()
    if not show:
        yield lambda note: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total, note="")
        yield lambda note: bar.update(task, advance=1, note=note)
