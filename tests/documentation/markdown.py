"""Read fenced code blocks out of Markdown pages."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

CONTINUES = "<!-- examples continue the quickstart -->"
"""What a page says whose examples use the quickstart's names and files."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        page: path of the page, relative to the repository.
        line: line number of its first line, from 1.
        language: what stands behind the fence, or "".
        text: its content.
    """

    page: str
    line: int
    language: str
    text: str


def pages() -> list[str]:
    """Return the paths of all pages of the documentation, relative to the repository."""
    found = sorted((ROOT / "docs").rglob("*.md"))
    return ["README.md", *(str(path.relative_to(ROOT)) for path in found)]


def blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    pattern = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
    return [
        Block(
            page,
            text[: match.start(3)].count("\n") + 1,
            match[2],
            re.sub(rf"^{match[1]}", "", match[3], flags=re.MULTILINE),
        )
        for match in pattern.finditer(text)
    ]


def commands(block: Block) -> list[list[str]]:
    """Return the command lines of a block, split as a shell does, comments dropped.

    A line that ends in a backslash goes on in the next; a prompt ``$``, redirections, pipes
    and ``&`` are dropped.
    """
    text = block.text.replace("\\\n", " ")
    lines = [re.sub(r"^\$ ", "", line.strip()) for line in text.splitlines()]
    wanted = ("tfdq ", "python -m tflite_export ", "pip install ", "make ")
    split = [shlex.split(line, comments=True) for line in lines if line.startswith(wanted)]
    return [list(takewhile(lambda word: word not in (">", "|", "&"), words)) for words in split]
