"""Intervals and paired tests for accuracies measured on the same examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Proportion:
    """A share of examples with its confidence interval.

    Attributes:
        successes: Number of examples that count.
        total: Number of examples looked at.
        low: Lower end of the Wilson interval, in [0, 1].
        high: Upper end of the Wilson interval, in [0, 1].
    """

    successes: int
    total: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """The share itself, in [0, 1]."""
        return self.successes / self.total

    def __str__(self) -> str:
        """Return the share and its interval in percent, `71.6 % [68.2, 74.8]`."""
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def wilson(successes: int, total: int, confidence: float = 0.95) -> Proportion:
    r"""Return a share with its Wilson score interval.

    `(p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)`, z the normal quantile. It stays in
    [0, 1] and keeps its coverage near 0 and 1, where robust accuracies often are.

    Args:
        successes: Number of examples that count, 0 to `total`.
        total: Number of examples, at least 1.
        confidence: Coverage, in (0, 1).

    Returns:
        The share with its interval.

    Raises:
        ValueError: If an argument is out of range.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference,
    JASA 22 (1927).
    """
    from scipy.stats import norm

    if total < 1 or not 0 <= successes <= total:
        raise ValueError(f"need 0 <= successes <= total and total >= 1, got {successes} of {total}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), e.g. 0.95; got {confidence}")
    z = float(norm.ppf(0.5 + confidence / 2))
    share = successes / total
    centre = share + z * z / (2 * total)
    half = z * float(np.sqrt(share * (1 - share) / total + z * z / (4 * total * total)))
    scale = 1 + z * z / total
    low = 0.0 if successes == 0 else (centre - half) / scale
    high = 1.0 if successes == total else (centre + half) / scale
    return Proportion(int(successes), int(total), low, high)


@dataclass(frozen=True)
class PairedComparison:
    """Two models compared on the same examples.

    Attributes:
        first: Name of the first model.
        second: Name of the second model.
        epsilon: Perturbation size in input units; 0 is the clean accuracy.
        only_first: Examples that only the first model gets right.
        only_second: Examples that only the second model gets right.
        total: Number of examples.
        p_value: Exact two-sided McNemar p-value.
        p_adjusted: The p-value after Holm's correction over all the comparisons of a report.
    """

    first: str
    second: str
    epsilon: float
    only_first: int
    only_second: int
    total: int
    p_value: float
    p_adjusted: float = float("nan")

    @property
    def difference(self) -> float:
        """Accuracy of the first model less that of the second, in [-1, 1]."""
        return (self.only_first - self.only_second) / self.total


def mcnemar(first_right: np.ndarray, second_right: np.ndarray) -> tuple[int, int, float]:
    """Test whether two models are right equally often on the same examples.

    Under the null hypothesis the discordant examples fall to either side like a fair coin, so the
    exact test is a two-sided binomial one on them.

    Args:
        first_right: Which examples the first model gets right, shape (n,), bool.
        second_right: The same for the second model, in the same order.

    Returns:
        Number only the first gets right, number only the second gets right, p-value.

    Raises:
        ValueError: If the two arrays differ in shape.

    Source: Q. McNemar, Psychometrika 12 (1947); the exact form of Fagerland et al., BMC Medical
    Research Methodology 13 (2013).
    """
    from scipy.stats import binomtest

    first = np.asarray(first_right, bool)
    second = np.asarray(second_right, bool)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(
            "a paired comparison needs the same examples for both models, one value each; got "
            f"shapes {first.shape} and {second.shape}"
        )
    only_first = int(np.sum(first & ~second))
    only_second = int(np.sum(second & ~first))
    discordant = only_first + only_second
    p_value = 1.0 if discordant == 0 else float(binomtest(only_first, discordant, 0.5).pvalue)
    return only_first, only_second, p_value


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for the number of comparisons (Holm's step-down procedure).

    Args:
        p_values: Raw p-values, each in [0, 1].

    Returns:
        Adjusted p-values in the same order.

    Source: S. Holm, Scandinavian Journal of Statistics 6 (1979).
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted
