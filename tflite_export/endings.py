"""How a command ends that is stopped from outside: Ctrl-C, `kill`, a closed terminal."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_AGAIN_SECONDS = 0.2
_WORDS = {"SIGTERM": "terminated", "SIGHUP": "the terminal was closed"}


class Ended:
    """What ended a command.

    Attributes:
        signal: the signal; SIGINT (Ctrl-C) where no other one came.
    """

    def __init__(self) -> None:
        self.signal = signal.SIGINT
        self._again: threading.Timer | None = None

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

        So whatever ends the command, files are closed, and it can say what is kept. Python ignores
        an exception in a destructor or a callback of the garbage collector, where the signal may
        happen to arrive: it is then sent once more. A signal that is ignored (`nohup`) stays so.
        Outside the main thread nothing changes.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {}
        for name in _WORDS:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, self._interrupt)
        hook = sys.unraisablehook

        def unraisable(ignored: sys.UnraisableHookArgs, /) -> None:
            if issubclass(ignored.exc_type, KeyboardInterrupt):
                self._send_again()
            else:
                hook(ignored)

        sys.unraisablehook = unraisable
        try:
            yield
        finally:
            sys.unraisablehook = hook
            if self._again is not None:
                self._again.cancel()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _send_again(self) -> None:
        if self.signal is not signal.SIGINT:
            signal.signal(self.signal, self._interrupt)
        # From another thread, once Python has left the place where it ignores exceptions.
        self._again = threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), self.signal))
        self._again.daemon = True
        self._again.start()

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        # A second one ends the process at once.
        signal.signal(number, signal.SIG_DFL)
        raise KeyboardInterrupt
