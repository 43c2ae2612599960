"""Plots of the singular values of a network's layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfdq.certificates.linear_maps import Array


def plot_spectra(spectra: Mapping[str, Array], path: str | None = None) -> Any:
    """Plot singular values over their rank, one panel for each layer.

    The dashed line at 1 is where an orthogonal layer would lie.

    Args:
        spectra: singular values by layer name, each largest first.
        path: file to save the figure to; None: do not save.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: there are no spectra.
    """
    from matplotlib.figure import Figure

    if not spectra:
        raise ValueError("there are no spectra: make the report with spectra=True")
    columns = min(4, len(spectra))
    rows = math.ceil(len(spectra) / columns)
    figure = Figure(figsize=(3.2 * columns, 2.4 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, (name, values) in zip(panels, spectra.items(), strict=False):
        panel.plot(np.linspace(0, 1, len(values)), values, linewidth=1.2)
        panel.axhline(1.0, color="0.5", linestyle="--", linewidth=0.8)
        panel.set_title(name, fontsize=8)
        panel.set_ylim(bottom=0)
        panel.tick_params(labelsize=7)
    for panel in panels[len(spectra) :]:
        panel.set_visible(False)
    figure.supxlabel("rank, as a share of all", fontsize=8)
    figure.supylabel("singular value", fontsize=8)
    if path is not None:
        figure.savefig(path, dpi=120)
    return figure
