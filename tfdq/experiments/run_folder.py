"""The folder of a run's training: what stands in it, and what of it is there already."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path
from typing import Any

from tfdq.experiments.folder import write_json
from tfdq.experiments.machines import Machines
from tfdq.experiments.process import devices_of, threads_of, versions_of
from tfdq.experiments.settings import RunSettings
from tfdq.mistakes import Mistake
from tfdq.robustness.json_files import Entries, naming, read_json, text_of

MODEL = "model.keras"
RECORD = "training.json"
HISTORY = "history.json"
CHECKPOINTS = "checkpoints"
_ENTRIES: Entries = {"weights": str, "seconds": (int, float), "history": list, "data": dict}
_TRAIN_AGAIN = "remove it, and the same command trains again"


class DivergedError(Mistake, RuntimeError):
    """The loss of a training became NaN or infinite."""


def finished(folder: Path, entries: Entries | None = None) -> dict[str, Any] | None:
    """Return the record of the training that was finished in a folder; None: it was not.

    Args:
        folder: of the training.
        entries: names that the record must have besides those that each has, with their types.

    Raises:
        DivergedError: it was, by diverging.
        ValueError: the record is damaged.
    """
    record = folder / RECORD
    if not record.exists():
        return None
    found = read_record(record, entries)
    if found.get("diverged"):
        raise DivergedError(str(found["diverged"]))
    return found


def read_record(path: Path, entries: Entries | None = None) -> dict[str, Any]:
    """Return what a ``training.json`` holds.

    Args:
        path: the file.
        entries: as for `finished`; a training that diverged has none of them.

    Raises:
        ValueError: the file is damaged.
    """
    found = read_json(path, _TRAIN_AGAIN)
    if found.get("diverged"):
        return found
    return read_json(path, _TRAIN_AGAIN, {**_ENTRIES, **(entries or {})})


def kept_history(folder: Path, epochs: int) -> list[dict[str, Any]]:
    """Return the figures of the epochs that a checkpoint stands after.

    Args:
        folder: of the run.
        epochs: how many these are.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / HISTORY
    if not path.exists():
        return []
    remedy = "remove the folder, and the same command trains again from the start"
    with naming(path, remedy):
        rows = json.loads(text_of(path))
        if not isinstance(rows, list) or not all("seconds" in row for row in rows):
            raise TypeError("it holds no list of epochs")
        if len(rows) < epochs:
            raise ValueError(f"it has {len(rows)} epochs, the checkpoint {epochs}")
    return rows[:epochs]


def describe(folder: Path, settings: RunSettings, seed: int, machines: Machines) -> None:
    """Write what is run, and where; or check that the folder is this run's."""
    path = folder / "settings.json"
    content = {"seed": seed, "settings": settings.model_dump(mode="json", exclude={"evaluation"})}
    if path.exists():
        remedy = "remove it, and the same command writes it anew"
        found = read_json(path, remedy, {"settings": dict, "seed": int})
        with naming(path, remedy):
            known = RunSettings.model_validate(found["settings"])
        if known.training_key(found["seed"]) != settings.training_key(seed):
            raise ValueError(f"{str(folder)!r} holds another run; give another folder")
    write_json(path, content)
    write_json(folder / "environment.json", environment(machines, settings.training.backend))


def environment(machines: Machines, backend: str) -> dict[str, Any]:
    """Return versions, source commit and machine of this process.

    Args:
        machines: the devices.
        backend: what is trained on.
    """
    return {
        "versions": versions_of(backend),
        "commit": source_commit(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "devices": devices_of(backend),
        "threads": threads_of(backend),
        "strategy": machines.name,
        "replicas": machines.replicas,
        "workers": machines.workers,
    }


def source_commit() -> str | None:
    """Return the git commit of the sources, with ``+changes`` if they differ; None outside git."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + (
            "+changes" if git("status", "--porcelain", str(here)) else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return None
