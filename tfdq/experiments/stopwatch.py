"""The time of a piece of work that is repeated."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

STEPS = 3
"""How often work is timed."""


def median_seconds(work: Callable[[], Any]) -> float:
    """Return the median time of a call, after one that traces."""
    work()
    times = []
    for _ in range(STEPS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
