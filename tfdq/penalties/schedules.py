"""Schedules of a quantity over training: a penalty's weight, an epsilon, a share of a loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

Schedule = Callable[[float], float]


@dataclass(frozen=True)
class Ramp:
    """A value that stays, moves along a straight line, and stays.

    Args:
        first: value up to ``begin``.
        last: value from ``end`` on.
        begin: where the line begins, in the unit that the schedule is called with.
        end: where it ends, > ``begin``.

    Raises:
        ValueError: a number is not finite, or ``end`` is not after ``begin``.

    Example:
        >>> Ramp(0.0, 0.1, begin=1, end=3)(2)
        0.05
    """

    first: float
    last: float
    begin: float
    end: float

    def __post_init__(self) -> None:
        """Check the arguments."""
        if not all(map(math.isfinite, (self.first, self.last, self.begin, self.end))):
            raise ValueError(f"the numbers of a ramp must be finite, got {self}")
        if self.end <= self.begin:
            raise ValueError(f"a ramp must end after it begins, got {self.begin} to {self.end}")

    def __call__(self, time: float) -> float:
        """Return the value at a time."""
        share = min(max((time - self.begin) / (self.end - self.begin), 0.0), 1.0)
        return self.first + share * (self.last - self.first)
