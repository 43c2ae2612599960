"""What is found of a network's Lipschitz constant, layer by layer."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from tfdq.certificates.linear_maps import Array

_ROUND_UP = 1 + 1e-14


@dataclass(frozen=True)
class LayerRow:
    """One line of a Lipschitz report.

    Attributes:
        name: the layer.
        kind: its class.
        inputs: rows whose outputs it takes.
        sigma: the measured norm (or exact constant) of the layer.
        upper: the bound used for the network, for each input; 1 where a layer is counted in the
            one before it.
        reshaped: largest singular value of the reshaped kernel, None without a kernel.
        cumulative: bound of the network from its input up to here.
        stacked: the inputs are concatenated, not added.
    """

    name: str
    kind: str
    inputs: tuple[int, ...]
    sigma: float
    upper: tuple[float, ...]
    reshaped: float | None
    cumulative: float
    stacked: bool = False


@dataclass(frozen=True)
class LipschitzReport:
    """What `report` found.

    Attributes:
        rows: one for each layer, in topological order.
        upper: proven bound of the network's L2 Lipschitz constant.
        estimate: the same composition with the measured norms in place of the bounds.
        lower: the largest local gain found, a lower bound of the constant; None: not searched.
        kernel: which kernels were measured.
        spectra: singular values of each layer with a kernel, largest first, by layer name.
    """

    rows: tuple[LayerRow, ...]
    upper: float
    estimate: float
    lower: float | None
    kernel: str
    spectra: dict[str, Array] = field(default_factory=dict)

    def table(self) -> str:
        """Return the report as text, one line for each layer."""
        lines = [
            f"{'layer':<34}{'kind':<24}{'reshaped':>10}{'norm':>10}{'bound':>10}{'so far':>12}"
        ]
        for row in self.rows:
            reshaped = "" if row.reshaped is None else f"{row.reshaped:.4f}"
            bound = max(row.upper, default=1.0)
            lines.append(
                f"{row.name[:33]:<34}{row.kind[:23]:<24}{reshaped:>10}{row.sigma:>10.4f}"
                f"{bound:>10.4f}{row.cumulative:>12.4g}"
            )
        lower = "not searched" if self.lower is None else f"{self.lower:.4g}"
        lines.append(f"network, {self.kernel} kernels: at most {self.upper:.4g}, at least {lower}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data for JSON, the spectra left out."""
        plain = asdict(self)
        del plain["spectra"]
        return plain

    def plot_spectra(self, path: str | None = None) -> Any:
        """Plot the singular values of every layer with a kernel over their rank.

        Args:
            path: file to save the figure to; None: do not save.

        Returns:
            The matplotlib figure.

        Raises:
            ValueError: the report was made without spectra.
        """
        from tfdq.certificates.spectra import plot_spectra

        return plot_spectra(self.spectra, path)


def compose(factors: tuple[float, ...], before: list[float], stacked: bool) -> float:
    """Return the bound after a layer from those before it, rounded up.

    Args:
        factors: the layer's constant for each of its inputs.
        before: the bound of each input; empty for an input of the network, whose bound is 1.
        stacked: the inputs are concatenated: the squares add.
    """
    if not before:
        return 1.0
    terms = [factor * bound for factor, bound in zip(factors, before, strict=True)]
    total = math.sqrt(math.fsum(t * t for t in terms)) if stacked else math.fsum(terms)
    return total if len(terms) == 1 and factors[0] == 1.0 else total * _ROUND_UP
