"""The networks in what the commands leave: a folder of one network, or of several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def networks_in(runs: Sequence[Path]) -> list[Path]:
    """Return the folders of single runs and the model files that paths stand for.

    The folder of a demo stands for its models, that of a reproduction for its finished runs; any
    other path for itself.

    Args:
        runs: what the user named; all of it exists.

    Raises:
        FileNotFoundError: a folder of several networks has none that is finished.
        ValueError: the mark that a command left in a folder is damaged.
    """
    from tfdq.experiments.folder import folder_kind

    found: list[Path] = []
    for run in runs:
        kind = folder_kind(run)
        several = {"demo": "models/*.keras", "reproduce": "runs/*/model.keras"}.get(kind or "")
        if several is None or (run / "model.keras").exists():
            found.append(run)
            continue
        models = sorted(run.glob(several))
        if not models:
            raise FileNotFoundError(
                f"{str(run)!r} has no finished network (no {several}); let `tfdq {kind}` run on"
            )
        found += models if kind == "demo" else [model.parent for model in models]
    return found


def integer_file_of(model: Path) -> Path | None:
    """Return the integer file that belongs to a model file; None if there is none.

    It lies beside the model under its name, in a demo's folder one folder up.
    """
    name = f"{model.stem}.tflite"
    places = [model.with_name(name)]
    if is_of_demo(model):
        places.append(model.parent.parent / name)
    return next((place for place in places if place.exists()), None)


def is_of_demo(model: Path) -> bool:
    """Whether a model file is one of a demo's."""
    from tfdq.experiments.folder import folder_kind

    return model.parent.name == "models" and folder_kind(model.parent.parent) == "demo"
