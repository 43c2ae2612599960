"""A masking audit as Markdown and as a figure."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tfdq.robustness.plot_text import plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import RenderableType

COLOURS = {"passed": "tab:green", "failed": "tab:red", "not run": "tab:gray"}


class RenderedCheck(Protocol):
    """What is told of a check."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def status(self) -> str:
        """``"passed"``, ``"failed"`` or ``"not run"``."""

    @property
    def figures(self) -> Mapping[str, Any]:
        """What it measured."""

    @property
    def criterion(self) -> str:
        """What it takes to pass."""

    @property
    def source(self) -> str:
        """The literature."""

    @property
    def remark(self) -> str:
        """What else is to be said."""


class Rendered(Protocol):
    """What is told of an audit: the parts of a `MaskingAudit` that are read here."""

    @property
    def model(self) -> str:
        """Name of the model."""

    @property
    def verdict(self) -> Any:
        """The verdict, as text when printed."""

    @property
    def checks(self) -> Sequence[RenderedCheck]:
        """The checks, in order."""

    @property
    def epsilon(self) -> float:
        """Radius in input units."""

    @property
    def examples(self) -> int:
        """Number of examples."""

    @property
    def seconds(self) -> float:
        """How long it took."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings of the audit."""

    @property
    def constant_class(self) -> int | None:
        """The class that a constant model gives."""

    @property
    def clean_accuracy(self) -> float | None:
        """Share of images classified rightly."""

    @property
    def white_box_accuracy(self) -> float | None:
        """Share of the examples that the white-box attacks leave."""

    def check(self, name: str) -> RenderedCheck:
        """Return a check by its name."""


def markdown(audit: Rendered) -> str:
    """Return the verdict and a table of the checks with figures, criteria and sources."""
    lines = [
        f"## {_headline(audit)}",
        "",
        _circumstances(audit),
        *_meaning(audit),
        "",
        "| check | verdict | figures | criterion | source |",
        "|---|---|---|---|---|",
    ]
    for check in audit.checks:
        verdict = check.status + (f": {check.remark}" if check.remark else "")
        cells = [check.name, verdict, _figures(check), check.criterion, check.source]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def for_terminal(audit: Rendered) -> RenderableType:
    """Return verdict and checks as text and a table that fits the terminal; no sources."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(show_lines=True)
    table.add_column("check", ratio=2, overflow="fold")
    table.add_column("verdict", min_width=7)
    table.add_column("criterion and figures", ratio=5, overflow="fold")
    styles = {"passed": "green", "failed": "bold red", "not run": "dim"}
    for check in audit.checks:
        told = (check.criterion, _figures(check), check.remark)
        table.add_row(
            Text(check.name),
            Text(check.status, styles[check.status]),
            Text("\n".join(part for part in told if part)),
        )
    # Never broken, so that scripts can look for it; print it with crop=False.
    head = Text(_headline(audit), "bold", no_wrap=True, overflow="ignore")
    return Group(head, Text("\n".join([_circumstances(audit), *_meaning(audit)])), table)


def _headline(audit: Rendered) -> str:
    return f"Gradient-masking audit of {audit.model}: {audit.verdict}"


def _circumstances(audit: Rendered) -> str:
    ran = sum(check.status != "not run" for check in audit.checks)
    where = " (in the channel of the largest)" if "radius" in audit.settings else ""
    return (
        f"eps {audit.epsilon:.5g}{where}, {audit.examples} correctly classified examples, "
        f"{ran} of {len(audit.checks)} checks run, {audit.seconds:.0f} s, "
        f"seed {audit.settings.get('seed')}."
    )


def _meaning(audit: Rendered) -> list[str]:
    """Return what the verdict is about, so that nobody takes it for one on robustness."""
    lines = []
    if audit.constant_class is not None:
        lines.append(
            f"The model gives class {audit.constant_class} to every image looked at: it is "
            "constant, and no figure of its robustness means anything."
        )
    if audit.clean_accuracy is not None:
        text = f"Clean accuracy {audit.clean_accuracy:.1%}"
        if audit.white_box_accuracy is not None:
            robust = audit.clean_accuracy * audit.white_box_accuracy
            text += (
                f"; the white-box attacks leave {audit.white_box_accuracy:.1%} of the examples, "
                f"{robust:.1%} of all images"
            )
        lines.append(
            f"{text}. The audit judges whether such a figure can be believed, not how high it is."
        )
    return lines


def _figures(check: RenderedCheck) -> str:
    return "; ".join(f"{key} {_plain(value)}" for key, value in check.figures.items())


def figure(audit: Rendered, path: str | os.PathLike[str] | None) -> Figure:
    """Plot accuracy against epsilon, steps and logit scale beside the list of verdicts.

    Args:
        audit: The audit.
        path: Image file to write, or None.

    Returns:
        The figure.
    """
    from matplotlib.figure import Figure

    plot = Figure(figsize=(11, 6.5), layout="constrained")
    grid = plot.add_gridspec(3, 2, width_ratios=(1, 1.2))
    panels = (
        ("monotone in epsilon", "epsilons", "eps"),
        ("plateau in steps", "steps", "PGD steps"),
        ("logit scale", "scales", "logits multiplied by"),
    )
    for row, (name, key, label) in enumerate(panels):
        axes = plot.add_subplot(grid[row, 0])
        check = audit.check(name)
        if check.status != "not run":
            xs = np.asarray(check.figures[key], float)
            order = np.argsort(xs)
            ys = np.asarray(check.figures["accuracies"], float)
            axes.plot(xs[order], ys[order], marker="o", color=COLOURS[check.status])
            if key == "scales":
                axes.set_xscale("log")
        axes.set(xlabel=label, ylabel="PGD accuracy", ylim=(-0.02, 1.02))
        axes.set_title(f"{name}: {check.status}", fontsize=9, color=COLOURS[check.status])
        axes.grid(alpha=0.3)
    listing = plot.add_subplot(grid[:, 1])
    listing.axis("off")
    for row, check in enumerate(audit.checks):
        height = 1 - (row + 0.5) / len(audit.checks)
        text = f"{check.status:8s}"
        listing.text(
            0, height, text, color=COLOURS[check.status], family="monospace", fontsize=9,
        )  # fmt: skip
        listing.text(0.14, height, f"{check.name}   ({check.criterion})", fontsize=8)
    plot.suptitle(
        f"Gradient-masking audit of {plain(audit.model)}, eps {audit.epsilon:.4g}: "
        f"{plain(str(audit.verdict))}"
    )
    if path is not None:
        plot.savefig(path, dpi=150)
    return plot


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_plain(item) for item in value) + "]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
