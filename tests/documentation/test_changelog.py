"""CHANGELOG.md: a section for each version, newest first, one line a change."""

import re

from tests.documentation.markdown import ROOT
from tfdq import __version__

LINES = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
KINDS = ("Added", "Changed", "Renamed", "Deprecated", "Removed", "Fixed", "Security")


def test_sections() -> None:
    titles = [line for line in LINES if line.startswith("## ")]
    versions = [re.fullmatch(r"## \[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d", t) for t in titles[1:]]
    assert titles[0] == "## [Unreleased]"
    assert all(versions), titles
    numbers = [tuple(map(int, found[1].split("."))) for found in versions if found]
    assert numbers == sorted(set(numbers), reverse=True)
    assert versions[0] is not None
    assert versions[0][1] == __version__


def test_one_line_a_change() -> None:
    """No entry wraps, and none is too long to be read at a glance."""
    body = LINES[LINES.index("## [Unreleased]") :]
    shaped = re.compile(rf"|## \[.*|### ({'|'.join(KINDS)})|- \S.*")
    assert [line for line in body if not shaped.fullmatch(line)] == []
    assert [line for line in body if len(line) > 160] == []
    changes = [line for line in body if line.startswith("- ")]
    assert len(set(changes)) == len(changes)
