"""The figure of an experiment: lines, bars, depth or transfer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfdq.report.experiment_table import strengths, title
from tfdq.robustness.plot_text import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colour-blind safe (Okabe and Ito), told apart by marker as well.
_COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#0072B2", "#D55E00")
_MARKERS = "osD^vPX"
_STYLES = ("-", ":", "--", "-.")


def plot_experiment(results: Mapping[str, Any], path: Path) -> None:
    """Draw the figure that the recipe asks for.

    Args:
        results: the content of a ``results.json``.
        path: image file to write.
    """
    from matplotlib.figure import Figure

    kind = results["recipe"]["content"]["figure"]["kind"]
    bars = kind == "bars"
    size = (max(7.0, 0.9 * len(results["summary"])), 5.0) if bars else (8.5, 5.2)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    draw = {"lines": _lines, "bars": _bars, "depth": _depth, "transfer": _transfer}[kind]
    draw(results, axes)
    axes.set_title(title(results).replace("$", r"\$"), fontsize=10)
    figure.savefig(path, dpi=150)


def _figure(results: Mapping[str, Any], name: str, metric: str) -> Mapping[str, Any] | None:
    """Return a figure of a variant, at the largest strength."""
    metrics = results["summary"].get(name, {})
    if metric in metrics:
        return metrics[metric]
    for strength in reversed(strengths(results)):
        if f"{metric}@{strength}" in metrics:
            return metrics[f"{metric}@{strength}"]
    return None


def _spread(figures: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """Return the lengths of the error bars; none where there is no interval."""
    return [
        [0.0 if f["low"] is None else max(f["mean"] - f["low"], 0.0) for f in figures],
        [0.0 if f["high"] is None else max(f["high"] - f["mean"], 0.0) for f in figures],
    ]


def _lines(results: Mapping[str, Any], axes: Axes) -> None:
    """Draw accuracy against a setting: a colour a group, a style a metric."""
    asked = results["recipe"]["content"]["figure"]
    setting = asked["x"]
    groups: dict[str, list[tuple[float, str]]] = {}
    flat = []
    for variant in results["recipe"]["variants"]:
        if setting in variant["point"]:
            groups.setdefault(variant["group"], []).append(
                (variant["point"][setting], variant["name"])
            )
        else:
            flat.append(variant["name"])
    for index, (group, points) in enumerate(groups.items()):
        colour, marker = _COLOURS[1 + index % 6], _MARKERS[1 + index % 6]
        for style, metric in zip(_STYLES, asked["metrics"], strict=False):
            known = [(x, _figure(results, name, metric)) for x, name in sorted(points)]
            drawn = [(x, figure) for x, figure in known if figure is not None]
            if drawn:
                axes.errorbar(
                    [x for x, _ in drawn],
                    [figure["mean"] for _, figure in drawn],
                    yerr=_spread([figure for _, figure in drawn]),
                    color=colour,
                    marker=marker,
                    linestyle=style,
                    capsize=3,
                    label=plain(f"{group}, {metric}"),
                )
    for shade, name in zip(np.linspace(0.0, 0.6, len(flat)), flat, strict=True):
        for style, metric in zip(_STYLES, asked["metrics"], strict=False):
            figure = _figure(results, name, metric)
            if figure is not None:
                axes.axhline(
                    figure["mean"],
                    color=str(shade),
                    linestyle=style,
                    label=plain(f"{name}, {metric}"),
                )
    values = sorted({x for points in groups.values() for x, _ in points})
    if values and min(values) > 0 and max(values) / min(values) > 20:
        axes.set_xscale("log")
    else:
        axes.set_xticks(values)
    axes.set(xlabel=setting, ylabel="accuracy", ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    # Below the axes: no curve may lie under it.
    axes.legend(fontsize=7, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.12))


def _bars(results: Mapping[str, Any], axes: Axes) -> None:
    """Draw a group of bars for each variant, a bar a metric."""
    names = list(results["summary"])
    metrics = results["recipe"]["content"]["figure"]["metrics"]
    width = 0.8 / len(metrics)
    for index, metric in enumerate(metrics):
        known = [(at, _figure(results, name, metric)) for at, name in enumerate(names)]
        drawn = [(at, figure) for at, figure in known if figure is not None]
        if drawn:
            axes.bar(
                [at - 0.4 + (index + 0.5) * width for at, _ in drawn],
                [figure["mean"] for _, figure in drawn],
                width,
                yerr=_spread([figure for _, figure in drawn]),
                color=_COLOURS[1 + index % 6],
                error_kw={"elinewidth": 0.8},
                label=metric,
            )
    axes.set_xticks(
        range(len(names)), [plain(n) for n in names], rotation=35, ha="right", fontsize=8
    )
    axes.set(ylabel="accuracy", ylim=(0, 1.02))
    axes.grid(axis="y", alpha=0.3)
    axes.legend()


def _depth(results: Mapping[str, Any], axes: Axes) -> None:
    """Draw the relative distance against depth, the mean over the seeds, at the middle strength."""
    curves: dict[str, list[list[float]]] = {}
    layers: list[str] = []
    shown = ""
    for run in results["runs"]:
        measured = run["figures"].get("amplification", {})
        if measured:
            shown = sorted(measured, key=float)[len(measured) // 2]
            layers = max(layers, measured[shown]["layers"], key=len)
            curves.setdefault(run["variant"], []).append(measured[shown]["distance"])
    for index, (name, distances) in enumerate(curves.items()):
        mean = np.mean(distances, axis=0)
        colour, marker = _COLOURS[index % 7], _MARKERS[index % 7]
        axes.plot(range(len(mean)), mean, color=colour, marker=marker, label=plain(name))
    axes.set_xticks(range(len(layers)), layers, rotation=45, ha="right", fontsize=7)
    axes.set(ylabel=f"mean ||A(x_adv) - A(x)|| / ||A(x)||, eps {shown}/255")
    axes.grid(alpha=0.3)
    axes.legend()


def _transfer(results: Mapping[str, Any], axes: Axes) -> None:
    """Draw the accuracy of every victim on every surrogate's images, the mean over the seeds."""
    tables: list[np.ndarray] = []
    rows: list[str] = []
    columns: list[str] = []
    for entry in results["transfers"]:
        by_surrogate = entry["eps"][max(entry["eps"], key=float)]
        rows = list(by_surrogate)
        columns = list(next(iter(by_surrogate.values())))
        tables.append(
            np.array([[by_surrogate[r][c].count("1") for c in columns] for r in rows])
            / entry["images"]
        )
    if not tables:
        return
    shares = np.mean(tables, axis=0)
    axes.imshow(shares, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    for row, column in np.ndindex(*shares.shape):
        share = shares[row, column]
        colour = "black" if share > 0.6 else "white"
        axes.text(column, row, f"{100 * share:.1f}", ha="center", va="center", color=colour)
    axes.set_xticks(
        range(len(columns)), [plain(c) for c in columns], rotation=30, ha="right", fontsize=8
    )
    axes.set_yticks(range(len(rows)), [plain(r) for r in rows])
    axes.set(xlabel="victim", ylabel="images made on (another seed)")
