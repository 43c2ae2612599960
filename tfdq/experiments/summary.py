"""What an experiment found: means over the seeds, and which claims the figures support."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tfdq.experiments.figures import (
    Figures,
    audit_reasons,
    check_figures,
    check_transfers,
    figures_of,
    mask,
)
from tfdq.experiments.known_results import FORMAT
from tfdq.experiments.recipe import Claim
from tfdq.experiments.runner import Experiment
from tfdq.robustness.json_files import naming, read_json
from tfdq.robustness.statistics import holm, mcnemar, wilson
from tfdq.robustness.versions import package_versions

FORMAT_VERSION = 1
SIGNIFICANT = 0.05
_MEASURE_AGAIN = "remove it, and the same command measures again"


def summarize(experiment: Experiment, command: str) -> dict[str, Any]:
    """Return everything that ``results.json`` holds, of what is finished.

    Args:
        experiment: run, in part or to the end.
        command: that made it.
    """
    runs = []
    for unit, training, figures in experiment.found():
        with naming(unit.result(experiment.out), _MEASURE_AGAIN):
            check_figures(figures)
        runs.append(
            {
                "variant": unit.variant.name,
                "group": unit.variant.group,
                "point": unit.variant.point,
                "seed": unit.seed,
                "training_key": unit.variant.settings.training_key(unit.seed),
                "training": {key: value for key, value in training.items() if key != "history"},
                "figures": figures,
            }
        )
    transfers = _transfers(experiment)
    figures = {
        variant.name: figures_of(
            [run for run in runs if run["variant"] == variant.name], transfers, variant.name
        )
        for variant in experiment.recipe.variants
    }
    finished = {(run["variant"], run["seed"]) for run in runs}
    wanted = [(v.name, seed) for seed in experiment.seeds for v in experiment.recipe.variants]
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "command": command,
        "recipe": experiment.recipe.to_dict(),
        "versions": package_versions(),
        "seeds": list(experiment.seeds),
        "missing": [list(pair) for pair in wanted if pair not in finished],
        "summary": {
            name: {metric: average(values) for metric, values in metrics.items()}
            for name, metrics in figures.items()
        },
        "audits": {name: audit_reasons(runs, name) for name in figures},
        "claims": [
            {
                **claim.model_dump(),
                **judge(claim, figures),
                "worst_case": in_worst_case(claim, figures),
            }
            for claim in experiment.recipe.content.claims
            # A part of a recipe says nothing of what it left out.
            if {claim.better, claim.worse} <= set(figures)
        ],
        "runs": runs,
        "transfers": transfers,
    }


def _transfers(experiment: Experiment) -> list[dict[str, Any]]:
    found = []
    for path in map(experiment.transfer_file, experiment.seeds):
        if path.exists():
            entry = read_json(path, _MEASURE_AGAIN, {"seed": int, "eps": dict})
            with naming(path, _MEASURE_AGAIN):
                check_transfers(entry)
            found.append(entry)
    return found


def average(values: dict[int, Any]) -> dict[str, Any]:
    """Return the mean over the seeds with its 95 % interval.

    With several seeds the interval is Student's, over the seeds: it holds for a network trained
    anew. With one seed it is Wilson's over the images, of that network alone.

    Args:
        values: seed -> string of 0 and 1, one character an image, or a number.

    Returns:
        ``mean``, ``low`` and ``high`` (None where there is no interval), ``seeds`` (their values),
        ``images`` (None for numbers).
    """
    from scipy.stats import t

    shares = {
        seed: float(np.mean(mask(value))) if isinstance(value, str) else float(value)
        for seed, value in sorted(values.items())
    }
    listed = np.array(list(shares.values()))
    first = next(iter(values.values()))
    images = len(first) if isinstance(first, str) else None
    mean = float(listed.mean())
    low: float | None = None
    high: float | None = None
    if len(listed) > 1:
        half = float(t.ppf(0.975, len(listed) - 1) * listed.std(ddof=1) / math.sqrt(len(listed)))
        low, high = mean - half, mean + half
        if images is not None:
            low, high = max(mean - half, 0.0), min(mean + half, 1.0)
    elif images is not None:
        share = wilson(int(mask(str(first)).sum()), images)
        low, high = share.low, share.high
    return {"mean": mean, "low": low, "high": high, "seeds": shares, "images": images}


def judge(claim: Claim, figures: dict[str, Figures]) -> dict[str, Any]:
    """Return whether a claim holds on the figures.

    It holds if the better variant is better with every seed and each seed's exact McNemar test, on
    the same images, is significant at 5 % after Holm's correction over the seeds; it is reversed
    if that is so the other way round; else it is not shown. Error amplification has no test over
    images: there the seeds must agree, three at least.

    Args:
        claim: the claim.
        figures: variant -> its figures.

    Returns:
        ``verdict`` ("holds", "reversed", "not shown" or "not measured"), ``eps``, and ``tests``,
        one entry a seed.
    """
    better, worse = figures.get(claim.better, {}), figures.get(claim.worse, {})
    metric = _metric(claim, better)
    if metric is None or metric not in worse:
        return {"verdict": "not measured", "tests": []}
    seeds = sorted(set(better[metric]) & set(worse[metric]))
    tests: list[dict[str, Any]] = []
    for seed in seeds:
        first, second = better[metric][seed], worse[metric][seed]
        if isinstance(first, str):
            one, two, p_value = mcnemar(mask(first), mask(second))
            tests.append({"seed": seed, "difference": (one - two) / len(first), "p": p_value})
        else:
            # A smaller amplification is the better one.
            tests.append({"seed": seed, "difference": second - first, "p": None})
    known = [test["p"] for test in tests if test["p"] is not None]
    for test, adjusted in zip(tests, holm(known), strict=False):
        test["p_adjusted"] = adjusted
    tested = bool(known) and all(test["p_adjusted"] < SIGNIFICANT for test in tests)
    sure = tested or (not known and len(tests) >= 3)
    signs = {np.sign(test["difference"]) for test in tests}
    verdict = "not shown"
    if sure and signs == {1.0}:
        verdict = "holds"
    elif sure and signs == {-1.0}:
        verdict = "reversed"
    return {"verdict": verdict, "metric": metric, "tests": tests}


def in_worst_case(claim: Claim, figures: dict[str, Figures]) -> dict[str, Any] | None:
    """Return how a claim about one attack fares in the worst case; None for any other claim."""
    if claim.metric in ("clean", "worst", "transfer", "amplification"):
        return None
    return judge(claim.model_copy(update={"metric": "worst"}), figures)


def _metric(claim: Claim, figures: Figures) -> str | None:
    """Return the metric of a claim with its strength, the largest where it says none."""
    if claim.metric in figures:
        return claim.metric
    strengths = [
        float(metric.rpartition("@")[2])
        for metric in figures
        if metric.rpartition("@")[0] == claim.metric
    ]
    if claim.eps is not None:
        strengths = [strength for strength in strengths if strength == claim.eps]
    return f"{claim.metric}@{max(strengths):.10g}" if strengths else None
