"""How a command ends that is stopped from outside: Ctrl-C, `kill`, a closed terminal."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_WORDS = {"SIGTERM": "terminated", "SIGHUP": "the terminal was closed"}


class Ended:
    """What ended a command.

    Attributes:
        signal: the signal; SIGINT (Ctrl-C) where no other one came.
    """

    def __init__(self) -> None:
        self.signal = signal.SIGINT

    @property
    def word(self) -> str:
        """What to say of it: "interrupted", "terminated" or "the terminal was closed"."""
        return _WORDS.get(self.signal.name, "interrupted")

    @property
    def status(self) -> int:
        """The exit status that a shell gives a process ended by the signal: 130 for Ctrl-C."""
        return 128 + int(self.signal)

    @contextmanager
    def by_signals(self) -> Iterator[None]:
        """Let SIGTERM and SIGHUP raise KeyboardInterrupt in the block, as Ctrl-C does.

        So whatever ends the command, files are closed, and it can say what is kept. A signal that
        is ignored (`nohup`) stays so. Outside the main thread nothing changes.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {}
        for name in _WORDS:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, self._interrupt)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        # A second one ends the process at once.
        signal.signal(number, signal.SIG_DFL)
        raise KeyboardInterrupt
