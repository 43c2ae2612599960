"""Make the card of a finished run's integer file."""

from __future__ import annotations

import hashlib
import shutil
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfdq.experiments.figures import check_figures
from tfdq.experiments.settings import EvaluationSettings, RunSettings
from tfdq.robustness.json_files import naming, read_json
from tfdq.robustness.verdict import verdict_of
from tfdq.zoo.cards import CARD_FORMAT, LARGEST_BYTES, Audit, Card, ModelInfo, Robust, Share
from tfdq.zoo.measures import attacked, certified, share

_CHECKED_IMAGES = 200
_CALLS = 60
_NAME_ANOTHER = "measure the run again with `tfdq reproduce`, or name another"


def make_card(run: Path, name: str, folder: Path, command: str) -> Card:
    """Put the integer file of a finished run into a zoo, with its card.

    Args:
        run: folder of the run, of ``tfdq reproduce``, with ``model.tflite`` in it.
        name: of the file in the zoo.
        folder: of the zoo.
        command: that made the run.

    Raises:
        FileNotFoundError: the run has no integer file or was not evaluated, or the model that it
            started from is not there.
        ValueError: the file is larger than 1 MiB, or that model is another now.
    """
    from tfdq.experiments.measuring import evaluation_images
    from tfdq.experiments.networks import load_images

    path = run / "model.tflite"
    measured = _measured(run)
    if not path.is_file() or measured is None:
        raise FileNotFoundError(
            f"{str(run)!r} has no integer file with its evaluation: run `tfdq reproduce` with "
            "evaluation.export = true first"
        )
    content = path.read_bytes()
    if len(content) > LARGEST_BYTES:
        raise ValueError(f"{str(path)!r} has {len(content):,} bytes; at most {LARGEST_BYTES:,}")
    described = read_json(run / "settings.json", _NAME_ANOTHER, {"settings": dict, "seed": int})
    with naming(run / "settings.json", _NAME_ANOTHER):
        settings = RunSettings.model_validate(described["settings"])
    settings = settings.model_copy(
        update={
            "data": settings.data.model_copy(update={"dir": None}),
            # The run's settings are those of its training, which can be evaluated in many ways.
            "evaluation": EvaluationSettings.model_validate(measured["evaluation"]),
        }
    )
    environment = read_json(
        run / "environment.json", _NAME_ANOTHER, {"machine": str, "commit": (str, type(None))}
    )
    dataset = load_images(settings.data)
    x, y = evaluation_images(dataset, len(measured["tflite"]["clean"]))
    x, y = x[:_CHECKED_IMAGES], y[:_CHECKED_IMAGES]
    strongest = max(float(eps) for eps in measured["tflite"]["attacks"])
    checked = Robust(
        eps=strongest,
        attacks=("pgd",),
        gradients="integer twin",
        **share(0, len(y)),
    )
    audit = measured.get("audit")
    speed = _speed_over_float(content, settings, dataset)
    settings = _without_place(settings)
    clean = Share(**_of_bits(measured["tflite"]["clean"]))
    robust = (*_recorded(measured["tflite"]), attacked(content, x, y, checked))
    card = Card(
        format=CARD_FORMAT,
        name=name,
        model_info=ModelInfo.of(settings, clean, robust),
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        settings=settings,
        seed=described["seed"],
        clean=clean,
        robust=robust,
        certified=certified(content, x, y),
        audit=None
        if audit is None
        else Audit(
            passed=verdict_of(audit).status == "passed",
            failed=verdict_of(audit).reasons,
            examples=audit["examples"],
        ),
        speed_over_float=speed,
        machine=environment["machine"],
        command=command,
        commit=environment["commit"],
    )
    from tfdq.robustness.result_store import write_atomically

    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, folder / f"{name}.tflite")
    write_atomically(folder / f"{name}.json", card.model_dump_json(indent=1) + "\n")
    return card


def _without_place(settings: RunSettings) -> RunSettings:
    """Return settings without the folder of the model to start from, which its digest names."""
    model = settings.model
    if model.start is None:
        return settings
    model = model.model_copy(update={"start": Path(model.start.name)})
    return settings.model_copy(update={"model": model})


def _measured(run: Path) -> dict[str, Any] | None:
    """Return the evaluation of a run's plain integer file on the most images."""
    found = []
    for path in sorted(run.glob("evaluation-*.json")):
        found.append(read_json(path, _NAME_ANOTHER))
        with naming(path, _NAME_ANOTHER):
            check_figures(found[-1])
            EvaluationSettings.model_validate(found[-1].get("evaluation", {}))
    fit = [
        f
        for f in found
        if "clean" in f.get("tflite", {})
        and not f["evaluation"]["squeezing"]
        # A card is checked on the images that are not.
        and not f["evaluation"].get("held_out")
    ]
    return max(fit, key=lambda f: (len(f["tflite"].get("suite", {})), f["images"]), default=None)


def _recorded(figures: Mapping[str, Any]) -> list[Robust]:
    """Return the figures of the evaluation: single attacks, then the worst case of the suite."""
    found = [
        Robust(eps=float(eps), attacks=(attack,), gradients="trained network", **_of_bits(text))
        for eps, attacks in figures["attacks"].items()
        for attack, text in attacks.items()
    ]
    suite = figures.get("suite", {"eps": {}})
    found += [
        Robust(
            eps=float(eps),
            attacks=tuple(suite["attacks"]),
            gradients="trained network",
            **_of_bits(parts["worst"]),
        )
        for eps, parts in suite["eps"].items()
    ]
    return found


def _speed_over_float(content: bytes, settings: RunSettings, dataset: Any) -> float:
    """Return the time of the float32 file of the same network over that of this one."""
    import tensorflow as tf

    from tfdq.experiments.networks import float_model
    from tflite_export import Interpreter
    from tflite_export.runtime.timing import measure

    network = float_model(settings.model, dataset)
    floats = tf.lite.TFLiteConverter.from_keras_model(network).convert()
    models = [Interpreter(file, trusted=True) for file in (floats, content)]
    slow, fast = measure(models, 1, _CALLS, 5, 20.0)
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def _of_bits(text: str) -> dict[str, Any]:
    return share(text.count("1"), len(text))
