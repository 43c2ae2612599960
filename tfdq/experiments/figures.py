"""The figures that a run's results hold, by metric and seed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfdq.robustness.verdict import verdict_of

AT_CHANCE = "at chance"
"""In place of the reasons of an audit that was left out, as too few images were right."""

Figures = dict[str, dict[int, Any]]
"""Metric, with its strength behind an @, -> seed -> string of 0 and 1, or a number."""


def figures_of(
    runs: Sequence[dict[str, Any]], transfers: Sequence[dict[str, Any]], name: str
) -> Figures:
    """Return the figures of one variant by metric and seed.

    Args:
        runs: of the variant.
        transfers: the black-box figures of the experiment, one entry a seed.
        name: of the variant.
    """
    found: Figures = defaultdict(dict)
    for run in runs:
        figures, seed = run["figures"], run["seed"]
        if "diverged" in figures:
            continue
        _add(found, figures, seed, "")
        exported = figures.get("tflite", {})
        if "clean" in exported:
            _add(found, exported, seed, "tflite ")
        for strength, curve in figures.get("amplification", {}).items():
            found[f"amplification@{strength}"][seed] = curve["distance"][-1] / curve["distance"][0]
    for entry in transfers:
        for strength, by_surrogate in entry["eps"].items():
            made = [victims[name] for victims in by_surrogate.values() if name in victims]
            if made:
                standing = np.all([mask(text) for text in made], axis=0)
                found[f"transfer@{strength}"][entry["seed"]] = "".join(
                    "1" if value else "0" for value in standing
                )
    return dict(found)


def _add(found: Figures, figures: dict[str, Any], seed: int, prefix: str) -> None:
    found[f"{prefix}clean"][seed] = figures["clean"]
    for strength, attacks in figures["attacks"].items():
        for attack, text in attacks.items():
            found[f"{prefix}{attack}@{strength}"][seed] = text
    for strength, parts in figures.get("suite", {}).get("eps", {}).items():
        for part, text in parts.items():
            # Of older records, when a suite had no other one without gradients.
            kind = "black_box" if part == "square" else part
            found[f"{prefix}{kind}@{strength}"][seed] = text


def mask(text: str) -> np.ndarray:
    """Return a string of 0 and 1 as bools, shape (n,)."""
    return np.frombuffer(text.encode(), np.uint8) == ord("1")


def audit_reasons(runs: Sequence[dict[str, Any]], name: str) -> dict[str, list[str]]:
    """Return seed -> why its audit did not pass, of the seeds that an audit was asked of."""
    found = {}
    for run in runs:
        figures, seed = run["figures"], str(run["seed"])
        if run["variant"] != name:
            continue
        if "audit" in figures:
            found[seed] = list(verdict_of(figures["audit"]).reasons)
        elif "audit_left_out" in figures:
            found[seed] = [AT_CHANCE]
    return found


def check_figures(figures: dict[str, Any]) -> None:
    """Check that the figures of one run are what a summary reads.

    Args:
        figures: as a run's ``evaluation-*.json`` holds them.

    Raises:
        LookupError: an entry is missing.
        AttributeError: an entry is of another kind.
        TypeError: likewise.
        ValueError: the figures of the images are no strings of 0 and 1.
    """
    run = {"variant": "", "seed": 0, "figures": figures}
    found = figures_of([run], [], "")
    audit_reasons([run], "")
    for metric, seeds in found.items():
        _check_figure(metric, seeds[0])


def check_transfers(entry: dict[str, Any]) -> None:
    """Check the figures of a black-box attack in the same way; see `check_figures`."""
    for strength, by_surrogate in entry["eps"].items():
        for surrogate, victims in by_surrogate.items():
            for victim, text in victims.items():
                _check_figure(f"{surrogate} to {victim} @{strength}", text)


def _check_figure(metric: str, value: Any) -> None:
    number = metric.startswith("amplification@")
    if number and not isinstance(value, (int, float)):
        raise TypeError(f"{metric} is {value!r:.40}, no number")
    if not number and (not isinstance(value, str) or not value or set(value) - {"0", "1"}):
        raise ValueError(f"{metric} is {value!r:.40}, no string of 0 and 1")
