"""The files of an experiment's results: figures, table, picture."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tfdq.experiments.folder import write_json
from tfdq.experiments.known_results import KnownResults
from tfdq.experiments.runner import Experiment
from tfdq.experiments.summary import summarize
from tfdq.report.experiment_figure import plot_experiment
from tfdq.report.experiment_table import as_markdown
from tfdq.robustness.result_store import write_atomically


def check_results(experiment: Experiment, name: str) -> None:
    """Refuse to put an experiment's results in place of others, before any work is done.

    More variants or seeds than the results there have are no harm: they hold those as well.

    Args:
        experiment: that is to be run.
        name: folder for the results, inside the experiment's.

    Raises:
        ValueError: results there hold figures that this experiment will not have.
    """
    path = experiment.out / name / "results.json"
    if not path.exists():
        return
    asked = [(unit.variant.settings, unit.seed) for unit in experiment.units() if unit.measured]
    lost = KnownResults([path]).without(asked)
    if lost:
        first = f"{lost[0]['variant']!r}, seed {lost[0]['seed']}"
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise ValueError(
            f"{str(path)!r} holds figures that this call does not ask for ({first}{more}), or asks "
            "for with other settings, and would lose them: give these results a --name of their own"
        )


def write_results(experiment: Experiment, name: str, command: str) -> tuple[dict[str, Any], Path]:
    """Write ``results.json``, ``table.md`` and ``figure.png`` of what is finished.

    Args:
        experiment: run, in part or to the end.
        name: folder for the results, inside the experiment's.
        command: that made it.

    Returns:
        The results, and their folder.

    Raises:
        OSError: they can't be written; earlier ones are then untouched.
    """
    results = summarize(experiment, command)
    folder = experiment.out / name
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "results.json", results)
    write_atomically(folder / "table.md", as_markdown(results))
    # Two processes that share the work both come here.
    unfinished = folder / f"unfinished-{os.getpid()}.png"
    plot_experiment(results, unfinished)
    unfinished.replace(folder / "figure.png")
    return results, folder
