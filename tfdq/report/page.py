"""One HTML file that needs nothing else: sections of tables, figures and images.

What is given as text is text: the template escapes all of it. Figures are SVG that
`tfdq.report.svg` made, pictures are PNG data.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: what is shown.
        value: what the column is sorted by; None: the text.
        verdict: ``"good"``, ``"bad"``, ``"unknown"`` or ``""``: said in words by the text, and by
            a colour besides.
    """

    text: str
    value: float | None = None
    verdict: str = ""


@dataclass(frozen=True)
class Table:
    """A table that the reader can sort by any column.

    Attributes:
        caption: what it shows, and how it was measured.
        columns: headings.
        rows: cells, as many as there are columns; the first of a row names it.
        numeric: columns that hold numbers, aligned to the right.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    numeric: frozenset[int] = frozenset()
    kind: str = field(default="table", init=False)

    def __post_init__(self) -> None:
        """Check that every row has a cell for every column."""
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"a row of {len(row)} cells in a table of {len(self.columns)} columns: "
                    f"{[cell.text for cell in row]}"
                )


@dataclass(frozen=True)
class Drawing:
    """A chart with its caption.

    Attributes:
        svg: the chart, made by `tfdq.report.svg.to_svg`; the only text that is not escaped.
        caption: what it shows, under it.
        alt: the same for a reader who can't see it, with the main figures in words.
    """

    svg: str
    caption: str
    alt: str
    kind: str = field(default="figure", init=False)


@dataclass(frozen=True)
class Picture:
    """A small image, shown enlarged and unsmoothed.

    Attributes:
        png: the file's bytes.
        caption: what it is.
        alt: the same for a reader who can't see it.
    """

    png: bytes
    caption: str
    alt: str

    @property
    def source(self) -> str:
        """The image as a data URI."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


@dataclass(frozen=True)
class Gallery:
    """Rows of small images.

    Attributes:
        caption: what they show.
        rows: images of one row belong together.
    """

    caption: str
    rows: tuple[tuple[Picture, ...], ...]
    kind: str = field(default="gallery", init=False)


@dataclass(frozen=True)
class Text:
    """A paragraph, or preformatted text.

    Attributes:
        text: what it says.
        preformatted: whether line breaks and spaces count.
    """

    text: str
    preformatted: bool = False
    kind: str = field(default="text", init=False)


@dataclass(frozen=True)
class Section:
    """A part of the report.

    Attributes:
        key: its anchor, letters and hyphens.
        title: its heading.
        items: what is in it, in order.
    """

    key: str
    title: str
    items: tuple[Any, ...]


def render(title: str, lead: str, sections: Sequence[Section]) -> str:
    """Return the report as one HTML document; no part of it is fetched from elsewhere.

    Args:
        title: heading of the document.
        lead: what it says, in a sentence or two.
        sections: the parts.

    Raises:
        ModuleNotFoundError: jinja2 is not installed; says what to install.
    """
    try:
        import jinja2
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the report needs jinja2: pip install 'tfdq[report]'", name="jinja2"
        ) from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (_TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    return environment.get_template("report.html").render(
        title=title,
        lead=lead,
        sections=sections,
        style=(_TEMPLATES / "report.css").read_text(encoding="utf-8"),
        script=script,
        script_digest=digest,
    )
