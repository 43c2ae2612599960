"""A robustness report as Markdown and as a figure; never without the attacks and the audit."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tfdq.robustness.plot_text import plain
from tfdq.robustness.statistics import PairedComparison, Proportion

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CAVEAT = "under these attacks"


class Rendered(Protocol):
    """What is told of an evaluation: the parts of a `RobustnessReport` that are read here."""

    @property
    def models(self) -> Sequence[Any]:
        """One record for each model."""

    @property
    def attacks(self) -> Sequence[str]:
        """Names of the attacks."""

    @property
    def epsilons(self) -> Sequence[float]:
        """Radii in input units."""

    @property
    def examples(self) -> int:
        """Number of examples."""

    @property
    def confidence(self) -> float:
        """Level of the intervals."""

    @property
    def survivors_only(self) -> bool:
        """Each attack ran on what those before it left."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings of the evaluation."""

    @property
    def versions(self) -> Mapping[str, str]:
        """Versions of the packages."""

    @property
    def data_digest(self) -> str:
        """Digest of the examples."""

    @property
    def started(self) -> str:
        """Date and time of the start."""

    def clean(self, name: str) -> Proportion:
        """Return the clean accuracy of a model."""

    def robust(self, name: str, epsilon: float, attack: str | None = None) -> Proportion:
        """Return the accuracy of a model under one attack, or in the worst case."""

    def verdict(self, name: str) -> str:
        """Return the verdict of a model's audit."""

    def comparisons(self) -> list[PairedComparison]:
        """Return the paired comparisons of the models."""


def in_255ths(epsilon: float, clip: tuple[float, float]) -> str:
    """Return an epsilon as people write it: `8/255` for images in [0, 1], a plain number else."""
    steps = epsilon * 255
    whole = round(steps)
    if tuple(clip) == (0.0, 1.0) and whole >= 1 and abs(steps - whole) < 1e-4:
        return f"{whole}/255"
    return f"{epsilon:.4g}"


def markdown(report: Rendered) -> str:
    """Return the report's figures as Markdown.

    Args:
        report: The report.

    Returns:
        Headline, accuracy table, one table of attacks per epsilon, comparisons, and how it was
        computed. The words "under these attacks" and each model's audit verdict are always there.
    """
    parts = [_heading(report), _accuracy_table(report)]
    parts += [_attack_table(report, epsilon) for epsilon in report.epsilons]
    if len(report.models) > 1:
        parts.append(_comparison_table(report))
    parts.append(_provenance(report))
    return "\n\n".join(parts) + "\n"


def _label(report: Rendered, epsilon: float) -> str:
    if f"{epsilon:.10g}" in report.settings.get("radii", {}):
        return f"{epsilon:.4g} (in the channel of the largest)"
    return in_255ths(epsilon, tuple(report.settings.get("clip", (0.0, 1.0))))


def _heading(report: Rendered) -> str:
    percent = f"{100 * report.confidence:g} %"
    return (
        f"## Robust accuracy {CAVEAT}\n\n"
        f"Attacks: {', '.join(report.attacks)} ({report.settings.get('norm', 'linf')}). "
        f"{report.examples} examples. Worst case per example over the attacks; every figure is an "
        f"upper bound on the true robust accuracy. Brackets: Wilson {percent} intervals."
    )


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _table(header: list[str], rows: list[list[str]]) -> str:
    rule = "|" + "---|" * len(header)
    return "\n".join([_row(header), rule, *(_row(row) for row in rows)])


def _accuracy_table(report: Rendered) -> str:
    header = ["model", "clean"]
    header += [f"eps {_label(report, e)}, {CAVEAT}" for e in report.epsilons]
    header.append("gradient-masking audit")
    rows = [
        [
            record.name,
            str(report.clean(record.name)),
            *(str(report.robust(record.name, e)) for e in report.epsilons),
            report.verdict(record.name),
        ]
        for record in report.models
    ]
    return _table(header, rows)


def _attack_table(report: Rendered, epsilon: float) -> str:
    each = "after it and all before it" if report.survivors_only else "alone"
    header = ["model", "attack", f"accuracy {each}", "broken", "queries", "gradients", "seconds"]
    rows = []
    for record in report.models:
        for piece in record.attacks:
            if not np.isclose(piece.epsilon, epsilon):
                continue
            name = piece.attack + (f" (via {piece.surrogate})" if piece.surrogate else "")
            if piece.skipped:
                rows.append([record.name, name, f"not applicable: {piece.skipped}", *("-" * 4)])
                continue
            share = report.robust(record.name, epsilon, piece.attack)
            broken = f"{int(piece.broken.sum())} of {int(piece.attempted.sum())}"
            rows.append(
                [
                    record.name,
                    name,
                    f"{100 * share.value:.1f} %",
                    broken,
                    f"{piece.queries}",
                    f"{piece.gradients}",
                    f"{piece.seconds:.1f}",
                ]
            )
    return f"### eps {_label(report, epsilon)}\n\n" + _table(header, rows)


def _comparison_table(report: Rendered) -> str:
    header = ["eps", "models", "difference", "only first right", "only second right"]
    header += ["McNemar p", "p, Holm-adjusted"]
    rows = [
        [
            "clean" if row.epsilon == 0 else _label(report, row.epsilon),
            f"{row.first} - {row.second}",
            f"{100 * row.difference:+.1f} points",
            str(row.only_first),
            str(row.only_second),
            f"{row.p_value:.3g}",
            f"{row.p_adjusted:.3g}",
        ]
        for row in report.comparisons()
    ]
    return f"### Paired comparisons, worst case {CAVEAT}\n\n" + _table(header, rows)


def _provenance(report: Rendered) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    return (
        f"Seed {report.settings.get('seed')}, batch size {report.settings.get('batch_size')}, "
        f"examples {report.data_digest}, started {report.started or 'unknown'}. {versions}."
    )


def figure(report: Rendered, path: str | os.PathLike[str] | None) -> Figure:
    """Plot the worst-case accuracy of every model against epsilon.

    Args:
        report: The report.
        path: Image file to write, or None.

    Returns:
        The figure: one line per model with its interval as a band, its audit verdict in the legend,
        and the attacks in the title.
    """
    from matplotlib.figure import Figure

    plot = Figure(figsize=(7, 4.5), layout="constrained")
    axes = plot.subplots()
    xs = np.array([0.0, *report.epsilons])
    for record in report.models:
        shares = [report.robust(record.name, e) for e in report.epsilons]
        shares.insert(0, report.clean(record.name))
        label = f"{record.name} ({report.verdict(record.name)})"
        (line,) = axes.plot(xs, [s.value for s in shares], marker="o", label=plain(label))
        lows, highs = [s.low for s in shares], [s.high for s in shares]
        axes.fill_between(xs, lows, highs, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set_xticks(xs, ["clean", *(_label(report, e) for e in report.epsilons)])
    axes.set(xlabel="perturbation (eps)", ylabel="accuracy", ylim=(0, 1))
    axes.set_title(
        f"Worst-case accuracy {CAVEAT}:\n{', '.join(report.attacks)}, n = {report.examples}",
        fontsize=10,
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    if path is not None:
        plot.savefig(path, dpi=150)
    return plot
