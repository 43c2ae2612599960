"""At the end of a test run: what was skipped for want of packages, and what brings them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

_EXTRA = re.compile(r"of the extra \[([\w-]+)\]")
_DEBIAN = re.compile(r"Debian's packages? ([\w.+-]+(?:(?:, | and )[\w.+-]+)*)")


def lines_about(reasons: Iterable[str]) -> list[str]:
    """Return what to say about tests that were skipped; nothing where no package lacked.

    Args:
        reasons: one for each test, or file of tests.
    """
    listed = list(reasons)
    extras = {name for text in listed for name in _EXTRA.findall(text)}
    debian = {
        name
        for text in listed
        for names in _DEBIAN.findall(text)
        for name in re.split(r", | and ", names)
    }
    found = []
    if extras:
        count = sum(bool(_EXTRA.search(text)) for text in listed)
        what = "test or file of tests was" if count == 1 else "tests or files of tests were"
        found.append(
            f"{count} {what} skipped for want of Python packages; with them: "
            f"make test EXTRAS={','.join(['dev', *sorted(extras)])}"
        )
    if debian:
        found.append(
            "skipped for want of Debian's packages; they come with: "
            f"apt install {' '.join(sorted(debian))}"
        )
    return found


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """List what was skipped for want of a package."""
    reports = terminalreporter.stats.get("skipped", ())
    # (file, line, reason); a list where a worker sent it.
    reasons = [r.longrepr[2] for r in reports if isinstance(r.longrepr, (tuple, list))]
    lines = lines_about(reasons)
    if lines:
        terminalreporter.section("not tested here")
        for line in lines:
            terminalreporter.line(line)
