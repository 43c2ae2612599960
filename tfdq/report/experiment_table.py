"""An experiment's results as Markdown: one table for each strength, claims, what was published."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tfdq.experiments.figures import AT_CHANCE
from tfdq.experiments.settings import ModelSettings, RunSettings
from tfdq.robustness.attacks import available_attacks
from tfdq.robustness.verdict import NOTHING_RAN

_TITLES = {"white_box": "white box", "worst": "worst case", "transfer": "black box"}
"""Of metrics that are neither an attack's figures nor called as in the results."""

_OF_FILE = "tflite "
_NOT_SINGLE = ("clean", "white_box", "black_box", "worst", "transfer", "amplification")

HIDDEN_BEYOND = 0.02
"""White-box accuracy may exceed the worst case by this much where a network is called robust."""


def strengths(results: Mapping[str, Any]) -> list[str]:
    """Return the strengths that were measured, in 1/255, ascending."""
    found = {
        metric.rpartition("@")[2]
        for metrics in results["summary"].values()
        for metric in metrics
        if "@" in metric
    }
    return sorted(found, key=float)


def title(results: Mapping[str, Any]) -> str:
    """Return the title of an experiment with the images it is about."""
    return f"{results['recipe']['content']['title']} ({_images(results)})"


def _images(results: Mapping[str, Any]) -> str:
    """Return the name of the data set as it was loaded: a recompressed copy says so."""
    loaded = {run["training"].get("data", {}).get("name") for run in results["runs"]} - {None}
    asked = results["recipe"]["variants"][0]["settings"]["data"]["name"]
    return ", ".join(sorted(loaded)) or str(asked)


def as_markdown(results: Mapping[str, Any]) -> str:
    """Return the results of an experiment as Markdown.

    Args:
        results: the content of a ``results.json``.
    """
    results = _with_black_box(results)
    content = results["recipe"]["content"]
    setup = results["recipe"]["setup"]
    lines = [f"## {title(results)}", ""]
    lines += [f"The paper: {content['paper']}", ""] if content["paper"] else []
    lines += [_made_by(results), ""]
    for strength in strengths(results) or [""]:
        lines += _table(results, strength)
    lines += _notes(results, setup)
    if results["claims"]:
        lines += ["", "| claim | measured under | verdict | difference, each seed | worst case |"]
        lines += ["|---|---|---|---|---|"]
        lines += [_claim(claim) for claim in results["claims"]]
    if content["published"]:
        lines += ["", "| published | figure | source |", "|---|---|---|"]
        lines += [f"| {p['what']} | {p['value']} | {p['source']} |" for p in content["published"]]
    return "\n".join(lines) + "\n"


def _with_black_box(results: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return results whose summary calls the black-box attacks of a suite so; older ones do not."""
    runs = (run["figures"].get("suite", {}).get("eps", {}) for run in results["runs"])
    older = any("square" in parts for suite in runs for parts in suite.values())
    summary = results["summary"]
    if not older or any(
        key.startswith("black_box@") for found in summary.values() for key in found
    ):
        return results
    renamed = {
        name: {re.sub(r"^(tflite )?square@", r"\1black_box@", key): v for key, v in found.items()}
        for name, found in summary.items()
    }
    return {**results, "summary": renamed}


def _black_box(results: Mapping[str, Any]) -> str:
    """Return what the black-box attacks of the suite are called: Square where it stands alone."""
    suites = (run["figures"].get("suite") for run in results["runs"])
    names = {name for suite in suites if suite for name in suite.get("black_box", ["square"])}
    single = {key.partition("@")[0] for found in results["summary"].values() for key in found}
    return _title(*names) if len(names) == 1 and not names & single else "black-box attacks"


def _made_by(results: Mapping[str, Any]) -> str:
    seeds = results["seeds"]
    left = len(results["missing"])
    text = f"Made by `{results['command']}`; {len(seeds)} seed{'s' if len(seeds) != 1 else ''}."
    return text if not left else f"{text} **Not finished: {left} runs are missing.**"


def _table(results: Mapping[str, Any], strength: str) -> list[str]:
    """Return the table of one strength: a row a variant."""
    columns = [
        key
        for key in _ordered(results)
        if any(_cell(metrics, key, strength) for metrics in results["summary"].values())
    ]
    audited = any(results["audits"].values())
    of_suite = {"black_box": _black_box(results)}
    shown = [of_suite.get(key) or _title(key) for key in columns]
    titles = ["variant", *shown, *(["audit"] if audited else [])]
    lines = [f"eps {strength}/255, accuracy in %:", ""] if strength else []
    lines += ["| " + " | ".join(titles) + " |", "|---" + "|---:" * (len(titles) - 1) + "|"]
    for name, metrics in results["summary"].items():
        cells = [_cell(metrics, key, strength) for key in columns]
        verdict = [_audit(results["audits"].get(name, {}))] if audited else []
        lines.append("| " + " | ".join([name, *cells, *verdict]) + " |")
    return [*lines, ""]


def _ordered(results: Mapping[str, Any]) -> list[str]:
    """Return the metrics in the order of the columns: clean, single attacks, suite, file.

    Of the attacks on the file the cheapest and the dearest stand for all.
    """
    names = {
        metric.partition("@")[0] for metrics in results["summary"].values() for metric in metrics
    }
    single = sorted(
        (name for name in names if name not in _NOT_SINGLE and not name.startswith(_OF_FILE)),
        key=_cost,
    )
    of_file = [name for name in single if f"{_OF_FILE}{name}" in names]
    ends = dict.fromkeys([*of_file[:1], *of_file[-1:]])
    file = [f"{_OF_FILE}{name}" for name in ("clean", *ends, "worst")]
    return ["clean", *single, *_NOT_SINGLE[1:-1], *file, _NOT_SINGLE[-1]]


def _cost(name: str) -> tuple[float, str]:
    """Return the key by which attacks are sorted: what one costs on an image, then its name."""
    spec = available_attacks().get(name)
    if spec is None:
        return float("inf"), name
    cost = spec.cost({}, spec.least_classes)
    return cost.gradients + cost.queries, name


def _title(key: str) -> str:
    if key.startswith(_OF_FILE):
        return f".tflite {_title(key.removeprefix(_OF_FILE))}"
    spec = available_attacks().get(key)
    return _TITLES.get(key, key) if spec is None else spec.title


def _cell(metrics: Mapping[str, Any], key: str, strength: str) -> str:
    """Return the mean of a metric, with its interval where there is one."""
    figure = metrics.get(f"{key}@{strength}", metrics.get(key))
    if figure is None:
        return ""
    if figure["images"] is None:
        return f"{figure['mean']:.2f}"
    text = f"{100 * figure['mean']:.1f}"
    if figure["low"] is None:
        return text
    return f"{text} [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]"


def _audit(audits: Mapping[str, Sequence[str]]) -> str:
    if not audits:
        return "not audited"
    done = [checks for checks in audits.values() if list(checks) != [AT_CHANCE]]
    chance = len(audits) - len(done)
    if not done:
        return f"not audited ({chance} of {len(audits)} at chance)"
    count = f"{len(audits)}; {chance} at chance" if chance else f"{len(audits)}"
    failed = sum(bool(checks) for checks in done)
    names = sorted({check for checks in done for check in checks})
    if not failed:
        return f"passed ({len(done)} of {count})"
    status = "incomplete" if names == [NOTHING_RAN] else "failed"
    return f"{status} ({failed} of {count}): {', '.join(names)}"


def _notes(results: Mapping[str, Any], setup: str) -> list[str]:
    settings = results["recipe"]["variants"][0]["settings"]
    data, model = settings["data"], ModelSettings.model_validate(settings["model"]).network
    several = len(results["seeds"]) > 1
    interval = (
        "Student's 95 % interval over the seeds" if several else "Wilson's 95 % interval, one seed"
    )
    train = "all" if data["train_images"] is None else f"{data['train_images']:,}"
    figures = [run["figures"] for run in results["runs"] if "clean" in run["figures"]]
    sources = {run["training"].get("data", {}).get("source") for run in results["runs"]} - {None}
    parts = [
        f"{_images(results)} ({train} training images), {model}, {settings['training']['epochs']} "
        f"epochs{f', setup {setup}' if setup else ''}."
    ]
    if figures:
        parts.append(f"Single attacks: {figures[0]['images']:,} test images.")
        if settings["evaluation"].get("held_out"):
            parts.append("They are held out: none of the other tables' is among them.")
        suites = [figure["suite"] for figure in figures if "suite" in figure]
        queries = settings["evaluation"]["square_queries"]
        if suites:
            # The longest: some attacks apply to quantized networks only.
            suite = max(suites, key=lambda found: len(found["attacks"]))
            parts.append(
                f"Worst case of {', '.join(suite['attacks'])} (targeted attacks at "
                f"{suite['target_classes']} classes, Square with {queries:,} queries): an "
                f"image is lost if one of them breaks it; {suite['images']:,} images."
            )
            for name in suite["attacks"]:
                if any(name not in found["attacks"] for found in suites):
                    parts.append(f"The {name} attack is left out where a network is not quantized.")
            of_files = {
                figure["tflite"]["suite"]["images"]
                for figure in figures
                if "suite" in figure.get("tflite", {})
            }
            if of_files - {suite["images"]}:
                counts = " or ".join(f"{count:,}" for count in sorted(of_files))
                parts.append(f"Worst case of the .tflite: the first {counts} of these images.")
            parts += _agreement(figures)
    parts += _hidden(results["summary"], _black_box(results))
    parts.append(f"In brackets: {interval}.")
    parts.append("Every figure is an upper bound on the true robust accuracy.")
    lines = [" ".join(parts)]
    lines += _audited(figures)
    lines += [f"Data: {source}." for source in sorted(sources)]
    commits = {figure.get("environment", {}).get("commit") for figure in figures} - {None}
    if commits:
        short = sorted(re.sub(r"^([0-9a-f]{10})[0-9a-f]*", r"\1", text) for text in commits)
        lines.append(f"Sources at commit {', '.join(short)}.")
    earlier = _with_earlier_penalty(results)
    if earlier:
        lines.append(
            "Trained with the penalty as it was before its gradient left the length of each "
            f"channel's kernel alone: {'; '.join(earlier)}. The present one, of the same value, "
            "trains other networks (docs/lipschitz.md)."
        )
    if "--known" in shlex.split(results["command"]):
        lines.append(
            "What `--known` names had been measured before, with the settings of this experiment; "
            "the command without it measures everything."
        )
    diverged = [
        f"{run['variant']} (seed {run['seed']})"
        for run in results["runs"]
        if "diverged" in run["figures"]
    ]
    if diverged:
        lines.append(f"Did not train, and count nowhere: {', '.join(diverged)}.")
    return lines


def _with_earlier_penalty(results: Mapping[str, Any]) -> list[str]:
    """Name the variants whose trainings the present settings would not find again."""
    settings = {
        variant["name"]: RunSettings.model_validate(variant["settings"])
        for variant in results["recipe"]["variants"]
    }
    return [
        name
        for name, wanted in settings.items()
        if wanted.penalty_is_folded
        and any(
            run["training_key"] != wanted.training_key(run["seed"])
            for run in results["runs"]
            if run["variant"] == name
        )
    ]


def _hidden(summary: Mapping[str, Any], black_box: str) -> list[str]:
    """Name the figures that are not to be called robust: they stand by hiding their gradients.

    Args:
        summary: of the results.
        black_box: what the attacks are called that find what those with gradients do not.
    """
    found = []
    for variant, metrics in summary.items():
        for metric, figure in metrics.items():
            attack, _, strength = metric.partition("@")
            worst = metrics.get(f"worst@{strength}")
            if attack != "white_box" or worst is None:
                continue
            gap = figure["mean"] - worst["mean"]
            if gap > HIDDEN_BEYOND:
                found.append(f"{variant} ({100 * gap:.1f} points at eps {strength}/255)")
    if not found:
        return []
    alone = "the black-box attacks break" if " " in black_box else f"{black_box} alone breaks"
    return [
        f"Not to be called robust, as {alone} more than {100 * HIDDEN_BEYOND:g} points of what the "
        f"white-box attacks leave: {', '.join(found)}."
    ]


def _agreement(figures: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say on how many images the file falls or stands where the network does."""
    same = count = 0
    for figure in figures:
        of_file = figure.get("tflite", {}).get("suite", {}).get("eps", {})
        for strength, parts in of_file.items():
            # The file is attacked on the first of the images, and maybe on fewer.
            pairs = zip(parts["worst"], figure["suite"]["eps"][strength]["worst"], strict=False)
            outcomes = [one == other for one, other in pairs]
            same, count = same + sum(outcomes), count + len(outcomes)
    if not count:
        return []
    return [
        f"File and network, each attacked on its own, have the same outcome in the worst case on "
        f"{same:,} of {count:,} images."
    ]


def _audited(figures: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say how much an audit looked at, and which of its checks were not run."""
    audits = [figure["audit"] for figure in figures if "audit" in figure]
    if not audits:
        return []
    left_out = Counter(
        check["name"]
        for audit in audits
        for check in audit["checks"]
        if check["status"] == "not run"
    )
    listed = ", ".join(f"{name} ({n} of {len(audits)})" for name, n in sorted(left_out.items()))
    counts = " or ".join(f"{n:,}" for n in sorted({audit["examples"] for audit in audits}))
    text = f"Audits: {counts} images; «passed» means that no check failed."
    return [f"{text} Not run for want of what they need: {listed}." if listed else text]


def _claim(claim: Mapping[str, Any]) -> str:
    def points(test: Mapping[str, Any]) -> str:
        if test["p"] is None:
            return f"{test['difference']:+.2f}"
        return f"{100 * test['difference']:+.1f} (p {test['p_adjusted']:.2g})"

    def listed(judged: Mapping[str, Any]) -> str:
        return ", ".join(points(test) for test in judged["tests"])

    worst = claim["worst_case"]
    suite = f"**{worst['verdict']}** {listed(worst)}" if worst is not None else ""
    cells = [claim["text"], claim["metric"], f"**{claim['verdict']}**", listed(claim), suite]
    return "| " + " | ".join(cells) + " |"
