"""Names as matplotlib is to draw them: letter by letter, and short enough to leave room."""

from __future__ import annotations

_LONGEST = 60


def plain(name: str) -> str:
    """Return a label for a plot: no formulas, no hidden labels, no more than 60 letters."""
    if len(name) > _LONGEST:
        half = (_LONGEST - 3) // 2
        name = f"{name[:half]}...{name[-half:]}"
    text = name.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text
