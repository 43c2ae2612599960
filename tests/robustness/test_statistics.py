"""Intervals and paired tests against statsmodels and hand-worked cases."""

from __future__ import annotations

import numpy as np
import pytest
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from tfdq.robustness.statistics import holm, mcnemar, wilson


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize(("hits", "total"), [(0, 10), (1, 10), (7, 20), (250, 500), (500, 500)])
def test_wilson_equals_statsmodels(hits: int, total: int, confidence: float) -> None:
    low, high = proportion_confint(hits, total, alpha=1 - confidence, method="wilson")
    ours = wilson(hits, total, confidence)
    assert ours.value == hits / total
    assert ours.low == pytest.approx(low, abs=1e-12)
    assert ours.high == pytest.approx(high, abs=1e-12)
    assert 0 <= ours.low <= ours.value <= ours.high <= 1


def test_proportion_reads_in_percent() -> None:
    assert str(wilson(5, 10)) == "50.0 % [23.7, 76.3]"


@pytest.mark.parametrize(
    ("hits", "total", "confidence"), [(-1, 3, 0.95), (4, 3, 0.95), (0, 0, 0.95), (1, 3, 1.0)]
)
def test_wilson_names_bad_input(hits: int, total: int, confidence: float) -> None:
    with pytest.raises(ValueError, match=r"successes|confidence"):
        wilson(hits, total, confidence)


@pytest.mark.parametrize("seed", range(5))
def test_mcnemar_equals_statsmodels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = rng.random(60) < 0.7, rng.random(60) < 0.55
    table = [
        [np.sum(first & second), np.sum(first & ~second)],
        [np.sum(~first & second), np.sum(~first & ~second)],
    ]
    only_first, only_second, p_value = mcnemar(first, second)
    assert (only_first, only_second) == (table[0][1], table[1][0])
    assert p_value == pytest.approx(reference_mcnemar(table, exact=True).pvalue, rel=1e-12)


def test_mcnemar_of_equal_models() -> None:
    right = np.array([True, False, True])
    assert mcnemar(right, right) == (0, 0, 1.0)


def test_mcnemar_needs_the_same_examples() -> None:
    with pytest.raises(ValueError, match="same examples"):
        mcnemar(np.ones(3, bool), np.ones(4, bool))


def test_holm_equals_statsmodels() -> None:
    p_values = [0.03, 0.001, 0.2, 0.04, 0.01]
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])
    assert holm([]) == []
