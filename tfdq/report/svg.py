"""Drawings for the HTML report: matplotlib's SVG, coloured by the page's style sheet.

matplotlib was chosen over Vega-Lite and Plotly: the library has it already, its SVG needs no script
(1 to 4 MB in every report), and it prints. Sorting and reading values is what the tables are for.
"""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colours that nothing else draws with; the page says what they are in light and in dark.
INK, FAINT, LINE = "#010101", "#010102", "#010103"
SERIES = tuple(f"#0202{index:02x}" for index in range(7))
MARKERS = "osD^vPX"
_VARIABLES = {
    INK: "--ink",
    FAINT: "--faint",
    LINE: "--line",
    **{colour: f"--s{index}" for index, colour in enumerate(SERIES)},
}


def style(index: int) -> dict[str, Any]:
    """Return colour, marker and dashes of a line; told apart without colour, too."""
    dashes = ("-", "--", "-.", ":")
    return {
        "color": SERIES[index % len(SERIES)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": dashes[index // len(SERIES) % len(dashes)],
    }


def new_figure(width: float = 7.0, height: float = 4.2) -> tuple[Figure, Any]:
    """Return an empty figure and its axes, in the page's colours.

    Args:
        width: inches; the page shrinks what is too wide.
        height: inches.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0.0)
    axes = figure.subplots()
    axes.patch.set_alpha(0.0)
    axes.tick_params(colors=INK, which="both")
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_color(INK)
    for spine in axes.spines.values():
        spine.set_color(LINE)
    axes.grid(color=LINE, linewidth=0.5)
    return figure, axes


def plain_numbers(axis: Any) -> None:
    """Write the numbers of a logarithmic axis as 2 and 0.5, not as powers."""
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    low, high = axis.get_view_interval()
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    # Between two powers of ten, where there is room for them.
    axis.set_minor_formatter(StrMethodFormatter("{x:g}") if high < 10 * low else NullFormatter())


def legend(axes: Any) -> None:
    """Put the legend where there is room."""
    axes.legend(labelcolor=INK, facecolor="none", edgecolor=LINE, fontsize=8)


def to_svg(figure: Figure, key: str) -> str:
    """Return a figure as SVG to be put into a page.

    Args:
        figure: in the colours of this module.
        key: letters and hyphens; what keeps the identifiers of two drawings apart.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": key}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{key}-', text)
    text = re.sub(r"url\(#", f"url(#{key}-", text)
    text = re.sub(r'(href=")#', rf"\1#{key}-", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    # Read out as one image by its description; the letters inside would be noise.
    return text.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)
