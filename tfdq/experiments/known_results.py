"""Networks that an earlier results file has figures of: a larger experiment goes on from it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tfdq.experiments.figures import check_figures
from tfdq.experiments.result_files import read_results_file
from tfdq.experiments.settings import EvaluationSettings, RunSettings

FORMAT = "tfdq experiment"


class KnownResults:
    """The runs of some ``results.json`` files, found again by what they depend on.

    Args:
        paths: the files; where two have the same run, the first one's stands.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file is no results file of an experiment.
    """

    def __init__(self, paths: Iterable[str | Path] = ()) -> None:
        self._runs: dict[str, list[tuple[EvaluationSettings, dict[str, Any]]]] = {}
        for path in paths:
            for measured, run in _runs(Path(path)):
                self._runs.setdefault(run["training_key"], []).append((measured, run))

    def find(self, settings: RunSettings, seed: int) -> dict[str, Any] | None:
        """Return the run that was trained with a seed and measured just as asked; None: no such.

        Args:
            settings: of the training and of the evaluation.
            seed: of everything.
        """
        wanted = settings.evaluation_key()
        for measured, run in self._runs.get(settings.training_key(seed), ()):
            if settings.model_copy(update={"evaluation": measured}).evaluation_key() == wanted:
                return run
        return None

    def without(self, asked: Iterable[tuple[RunSettings, int]]) -> list[dict[str, Any]]:
        """Return the runs that are none of those asked for.

        Args:
            asked: settings and seed of each.
        """
        kept = [self.find(settings, seed) for settings, seed in asked]
        return [
            run
            for runs in self._runs.values()
            for _, run in runs
            if not any(run is other for other in kept)
        ]


def _runs(path: Path) -> list[tuple[EvaluationSettings, dict[str, Any]]]:
    """Read the runs of a file, each with how it was measured, and check what will be used of it."""
    try:
        content = read_results_file(path)
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}")
        found = []
        for run in content["runs"]:
            if not isinstance(run["training_key"], str) or not isinstance(run["training"], dict):
                raise ValueError("a run in it has no training")
            check_figures(run["figures"])
            found.append((EvaluationSettings.model_validate(run["figures"]["evaluation"]), run))
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(
            f"{str(path)!r} is no results.json of `tfdq reproduce` or `tfdq sweep`: {error}"
        ) from error
    return found
