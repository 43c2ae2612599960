"""The demo's figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tfdq.robustness.report import RobustnessReport
from tfdq.robustness.statistics import Proportion

# Colour-blind safe (Okabe and Ito), told apart by marker as well.
_COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#0072B2", "#D55E00")
_MARKERS = "osD^vPX"


def plot_epsilons(report: RobustnessReport, models: Sequence[str], attack: str, path: Path) -> None:
    """Plot robust accuracy against eps, a line with its 95 % interval for each model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axes = figure.subplots()
    strengths = [0.0, *(255 * epsilon for epsilon in report.epsilons)]
    for name, colour, marker in zip(models, _COLOURS, _MARKERS, strict=False):
        shares = [report.clean(name), *(report.robust(name, e, attack) for e in report.epsilons)]
        axes.plot(strengths, [s.value for s in shares], color=colour, marker=marker, label=name)
        axes.fill_between(
            strengths,
            [s.low for s in shares],
            [s.high for s in shares],
            color=colour,
            alpha=0.12,
            linewidth=0,
        )
    axes.set(xlabel="eps (1/255)", ylabel="accuracy", ylim=(0, 1.02))
    axes.set_title(f"Robust accuracy under {attack}, with 95 % intervals", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def plot_bits(
    shares: Mapping[str, Mapping[int, tuple[Proportion, Proportion]]],
    full_precision: tuple[Proportion, Proportion],
    caption: str,
    path: Path,
) -> None:
    """Plot clean and robust accuracy against activation bits.

    Args:
        shares: model -> bits -> (clean, robust) accuracy.
        full_precision: the same of the float model.
        caption: what the robust accuracy is.
        path: image file to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for (name, by_bits), colour, marker in zip(
        shares.items(), _COLOURS[1:], _MARKERS[1:], strict=False
    ):
        bits = sorted(by_bits)
        for which, style, what in ((0, ":", "clean"), (1, "-", "robust")):
            chosen = [by_bits[b][which] for b in bits]
            axes.errorbar(
                bits,
                [s.value for s in chosen],
                yerr=[
                    [s.value - s.low for s in chosen],
                    [s.high - s.value for s in chosen],
                ],
                color=colour,
                marker=marker,
                linestyle=style,
                capsize=3,
                label=f"{name}, {what}",
            )
    for which, style, what in ((0, ":", "clean"), (1, "-", "robust")):
        axes.axhline(
            full_precision[which].value, color="black", linestyle=style, label=f"float, {what}"
        )
    axes.set(xlabel="activation bits", ylabel="accuracy", ylim=(0, 1.02))
    axes.set_xticks(sorted({b for by_bits in shares.values() for b in by_bits}))
    axes.set_title(caption, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
