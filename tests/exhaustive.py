"""Products of cases that are too long for every run: a part that covers each value runs always.

The rest is marked ``exhaustive`` and runs with ``make exhaustive``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

_MARK = pytest.mark.exhaustive


def spread(first: Sequence[Any], second: Sequence[Any], every: int) -> list[Any]:
    """Every pair of two sequences, of which one in ``every`` runs always.

    These lie on diagonals: each value of the second runs always if the first has at least
    ``every`` values, and each of the first if the second has.
    """
    return [
        pytest.param(a, b, marks=() if (i + j) % every == 0 else _MARK)
        for i, a in enumerate(first)
        for j, b in enumerate(second)
    ]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is marked, unless the marker is asked for."""
    if "exhaustive" in str(config.option.markexpr):
        return
    left_out = [item for item in items if item.get_closest_marker("exhaustive")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if not item.get_closest_marker("exhaustive")]


def only(cases: Sequence[Any], *always: Any) -> list[Any]:
    """Every case, of which those named run always."""
    assert set(always) <= set(cases)
    return [pytest.param(case, marks=() if case in always else _MARK) for case in cases]
