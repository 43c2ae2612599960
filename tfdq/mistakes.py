"""Errors about what was given, of kinds that Python raises for faults, too."""

from __future__ import annotations


class Mistake(Exception):
    """An error about what was given; its message names the value and the remedy.

    The command line reports it as it does a ValueError, where a bare TypeError, KeyError or
    RuntimeError is a fault of the program.
    """


class WrongTypeError(Mistake, TypeError):
    """A value of a type that is not taken."""


class UnknownNameError(Mistake, KeyError):
    """A name that stands for nothing."""
