"""Signals that end a command, in the places where they may arrive."""

import os
import signal
import time

import pytest

from tflite_export.endings import Ended


class Destroyed:
    """Its destructor is where a signal arrives: Python ignores what is raised there."""

    def __init__(self, number):
        self.number = number

    def __del__(self):
        os.kill(os.getpid(), self.number)
        time.sleep(0.01)


@pytest.fixture
def heard():
    """Signals as in a terminal: under nohup a process ignores SIGHUP, and in the background of a
    shell SIGINT, and so would the block.
    """
    kept = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    interrupted = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGHUP, kept)
    signal.signal(signal.SIGINT, interrupted)


@pytest.mark.parametrize(
    ("number", "word", "status"),
    [
        (signal.SIGINT, "interrupted", 130),
        (signal.SIGTERM, "terminated", 143),
        (signal.SIGHUP, "the terminal was closed", 129),
    ],
)
@pytest.mark.parametrize("where", ["in the command", "in a destructor"])
def test_a_signal_ends_the_block_wherever_it_arrives(where, number, word, status, heard):
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP)]
    ended = Ended()
    began = time.monotonic()

    def command():
        with ended.by_signals():
            if where == "in a destructor":
                Destroyed(number)
            else:
                os.kill(os.getpid(), number)
            time.sleep(20)

    with pytest.raises(KeyboardInterrupt):
        command()
    assert time.monotonic() - began < 10
    assert (ended.word, ended.status) == (word, status)
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP)] == before


def test_an_ignored_signal_stays_ignored():
    kept = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Ended().by_signals():
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.01)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, kept)
