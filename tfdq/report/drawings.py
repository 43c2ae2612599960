"""The figures of the HTML report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfdq.report.networks import ReportedNetwork
from tfdq.report.page import Drawing
from tfdq.report.svg import FAINT, legend, new_figure, plain_numbers, style, to_svg
from tfdq.robustness.plot_text import plain
from tfdq.robustness.statistics import Proportion

_HEAT = "viridis"


def robust_accuracy(networks: Sequence[ReportedNetwork], attack: str) -> Drawing:
    """Draw accuracy under one attack against its strength, with 95 % intervals."""
    figure, axes = new_figure()
    words = []
    for index, network in enumerate(networks):
        points: list[tuple[float, Proportion]] = []
        clean = network.clean()
        if clean is not None:
            points.append((0.0, clean))
        for strength in network.strengths:
            found = network.robust(attack, strength)
            if found is not None:
                points.append((strength, found))
        x = [strength for strength, _ in points]
        look = style(index)
        axes.plot(x, [share.value for _, share in points], label=plain(network.name), **look)
        axes.fill_between(
            x,
            [share.low for _, share in points],
            [share.high for _, share in points],
            color=look["color"],
            alpha=0.15,
            linewidth=0,
        )
        said = ", ".join(f"{100 * share.value:.1f} % at {strength:g}" for strength, share in points)
        words.append(f"{network.name}: {said}")
    axes.set(xlabel="strength (1/255)", ylabel="accuracy", ylim=(0, 1.02))
    legend(axes)
    return Drawing(
        to_svg(figure, f"curve-{attack}".replace("+", "-")),
        f"Accuracy under {attack} against its strength, with 95 % Wilson intervals. One attack by "
        "itself is an upper bound; the worst case over a suite is in the summary.",
        f"Line chart, accuracy under {attack} by strength in 1/255. " + ". ".join(words) + ".",
    )


def amplification(curves: Mapping[str, tuple[Sequence[str], Sequence[float]]]) -> Drawing:
    """Draw how far a perturbation has grown at each layer.

    Args:
        curves: name -> (layers, mean relative distance at each).
    """
    figure, axes = new_figure()
    words = []
    for index, (name, (_, distances)) in enumerate(curves.items()):
        grown = np.asarray(distances, float) / max(float(distances[0]), 1e-12)
        axes.plot(np.linspace(0, 1, len(grown)), grown, label=plain(name), **style(index))
        words.append(f"{name}: {grown[-1]:.2f} times at the last layer")
    axes.axhline(1.0, color=FAINT, linewidth=0.8, linestyle="--")
    axes.set(xlabel="depth, as a share of the layers", ylabel="distance, over that of the input")
    axes.set_yscale("log")
    plain_numbers(axes.yaxis)
    legend(axes)
    return Drawing(
        to_svg(figure, "amplification"),
        "How the relative distance between clean and adversarial activations grows from layer to "
        "layer, over that of the images; the dashed line is no growth.",
        "Line chart of error amplification by depth. " + ". ".join(words) + ".",
    )


def spectra(found: Mapping[str, Mapping[str, Any]]) -> Drawing:
    """Draw the largest and the median singular value of each layer.

    Args:
        found: name of the network -> layer -> singular values, largest first.
    """
    figure, axes = new_figure()
    words = []
    for index, (name, layers) in enumerate(found.items()):
        look = style(index)
        largest = [float(values[0]) for values in layers.values()]
        median = [float(np.median(values)) for values in layers.values()]
        axes.plot(range(len(layers)), largest, label=plain(f"{name}: largest"), **look)
        axes.plot(range(len(layers)), median, label=plain(f"{name}: median"), alpha=0.6, **{
            **look, "linestyle": ":", "markersize": 3,
        })  # fmt: skip
        words.append(
            f"{name}: largest {max(largest):.2f}, of a median layer {np.median(largest):.2f}"
        )
    axes.axhline(1.0, color=FAINT, linewidth=0.8, linestyle="--")
    names = list(next(iter(found.values())))
    axes.set_xticks(range(len(names)), map(plain, names), rotation=60, ha="right", fontsize=7)
    axes.set(ylabel="singular value")
    legend(axes)
    return Drawing(
        to_svg(figure, "spectra"),
        "Singular values of each layer as it is deployed (reshaped kernel, BatchNorm folded in, "
        "quantized): the largest and the median. Orthogonal layers would lie on the dashed line.",
        "Line chart of singular values by layer. " + ". ".join(words) + ".",
    )


def on_cell(value: float) -> str:
    """Return the colour of letters on a cell of the heat map: what stands out more.

    Args:
        value: of the cell, 0..1.
    """
    import matplotlib

    parts = np.asarray(matplotlib.colormaps[_HEAT](value)[:3])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ (0.2126, 0.7152, 0.0722))
    # The contrasts with black and with white, by WCAG 2.2.
    return "black" if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else "white"


def transfer(matrix: Any) -> Drawing:
    """Draw a transfer matrix as a heat map; the figures are written into it.

    Args:
        matrix: a `tfdq.robustness.TransferMatrix`.
    """
    rows, columns = matrix.standing.shape
    figure, axes = new_figure(2.6 + 0.95 * columns, 1.8 + 0.7 * rows)
    shares = matrix.standing / matrix.examples
    axes.grid(visible=False)
    axes.imshow(shares, vmin=0, vmax=1, cmap=_HEAT, aspect="auto")
    for row, column in np.ndindex(rows, columns):
        value = shares[row, column]
        axes.text(
            column,
            row,
            f"{100 * value:.0f}",
            ha="center",
            va="center",
            color=on_cell(value),
        )
    axes.set_xticks(range(columns), map(plain, matrix.victims), rotation=30, ha="right", fontsize=8)
    axes.set_yticks(range(rows), map(plain, matrix.surrogates), fontsize=8)
    axes.set(xlabel="shown to", ylabel="made on")
    words = [
        f"made on {surrogate}: "
        + ", ".join(
            f"{100 * shares[i, j]:.0f} % of {victim}" for j, victim in enumerate(matrix.victims)
        )
        for i, surrogate in enumerate(matrix.surrogates)
    ]
    return Drawing(
        to_svg(figure, "transfer"),
        f"Accuracy in percent on images made on the row's network and shown to the column's "
        f"({matrix.examples} images). The diagonal is the white-box attack.",
        "Heat map of transfer. " + ". ".join(words) + ".",
    )


def certified(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Drawing:
    """Draw certified accuracy against the radius.

    Args:
        curves: name -> (radii in 1/255, certified accuracies).
    """
    figure, axes = new_figure()
    words = []
    for index, (name, (radii, shares)) in enumerate(curves.items()):
        axes.step(radii, shares, where="post", label=plain(name), **style(index))
        said = ", ".join(f"{100 * s:.1f} % at {r:g}" for r, s in zip(radii, shares, strict=True))
        words.append(f"{name}: {said}")
    axes.set(xlabel="L-infinity radius (1/255)", ylabel="certified accuracy", ylim=(0, 1.02))
    legend(axes)
    return Drawing(
        to_svg(figure, "certified"),
        "Accuracy that is proven for the integer file by interval bounds: no image within the "
        "radius changes the answer.",
        "Step chart of certified accuracy by radius in 1/255. " + ". ".join(words) + ".",
    )


def parity(rows: Mapping[str, Sequence[tuple[str, float]]]) -> Drawing:
    """Draw the share of identical integers of each layer, trained network against its file.

    Args:
        rows: name -> (layer, share).
    """
    figure, axes = new_figure()
    words = []
    for index, (name, layers) in enumerate(rows.items()):
        shares = [100 * (1 - value) for _, value in layers]
        axes.plot(range(len(shares)), shares, label=plain(name), **style(index))
        words.append(f"{name}: at most {max(shares):.3f} % differ")
    first = next(iter(rows.values()))
    axes.set_xticks(
        range(len(first)), [plain(n) for n, _ in first], rotation=60, ha="right", fontsize=7
    )
    axes.set(ylabel="integers that differ (%)")
    axes.set_ylim(bottom=0)
    legend(axes)
    return Drawing(
        to_svg(figure, "parity"),
        "Integers that differ between the trained network and its file, layer by layer, each given "
        "the same inputs.",
        "Line chart of parity by layer. " + ". ".join(words) + ".",
    )
