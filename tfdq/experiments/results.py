"""The files of an experiment's results: figures, table, picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tfdq.experiments.folder import write_json
from tfdq.experiments.runner import Experiment
from tfdq.experiments.summary import summarize
from tfdq.report.experiment_figure import plot_experiment
from tfdq.report.experiment_table import as_markdown
from tfdq.robustness.result_store import write_atomically


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
    unfinished = folder / "unfinished.png"
    plot_experiment(results, unfinished)
    unfinished.replace(folder / "figure.png")
    return results, folder
