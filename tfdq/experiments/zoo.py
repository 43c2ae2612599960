"""A few integer files of the experiments, each with a card whose figures can be checked again."""

from __future__ import annotations

import hashlib
import shutil
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, ValidationError

from tfdq.experiments.figures import check_figures
from tfdq.experiments.settings import EvaluationSettings, RunSettings
from tfdq.robustness.json_files import naming, read_json
from tfdq.robustness.verdict import verdict_of
from tfdq.settings.section import Section

LARGEST_BYTES = 1 << 20
CARD_FORMAT: Literal["tfdq model card 1"] = "tfdq model card 1"
_CHECKED_IMAGES = 200
_CHECKED_STEPS = 20
_CERTIFIED_STEPS = 4
_TOLERANCE = 0.02
_CALLS = 60
_NAME_ANOTHER = "measure the run again with `tfdq reproduce`, or name another"


class Share(Section):
    """A share of test images with its 95 % Wilson interval."""

    accuracy: float = Field(ge=0, le=1)
    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)
    images: int = Field(ge=1)


class Robust(Share):
    """Accuracy of the file under attacks; an upper bound on its true robust accuracy.

    Attributes:
        eps: strength in 1/255, L_inf.
        attacks: an image counts only if it stands all of them.
        gradients: where they came from: the network that was exported, or the file's integer twin.
    """

    eps: float = Field(gt=0)
    attacks: tuple[str, ...]
    gradients: Literal["trained network", "integer twin"]


class Certified(Share):
    """Accuracy that is proven for the file's integers.

    Attributes:
        eps: in 1/255, L_inf.
    """

    eps: float = Field(gt=0)


class Audit(Section):
    """The audit of gradient masking of the network that was exported.

    Attributes:
        passed: its verdict.
        failed: why it did not pass: failed checks, a constant model, no check run.
        examples: images that it used.
    """

    passed: bool
    failed: tuple[str, ...]
    examples: int


class Card(Section):
    """What is known of one file; see docs/experiments.md.

    Attributes:
        format: of the card.
        name: of the file, without its suffix.
        bytes: size of the file.
        sha256: of the file.
        settings: of the run that it comes from, and of the evaluation whose figures these are.
        seed: of that run.
        clean: accuracy of the file on test images.
        robust: its accuracy under attacks; those of the integer twin can be checked again.
        certified: its proven accuracy.
        audit: None if there was none.
        speed_over_float: time of the float32 file of the same network over that of this one, one
            image at a time on one thread of the machine named.
        machine: that measured the speed.
        command: that made the file.
        commit: of the sources, None if not known.
    """

    format: Literal["tfdq model card 1"]
    name: str
    bytes: int = Field(gt=0, le=LARGEST_BYTES)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    settings: RunSettings
    seed: int
    clean: Share
    robust: tuple[Robust, ...]
    certified: tuple[Certified, ...] = ()
    audit: Audit | None = None
    speed_over_float: float | None = None
    machine: str | None = None
    command: str
    commit: str | None = None


@dataclass(frozen=True)
class Finding:
    """One figure of a card, checked again.

    Attributes:
        what: which figure.
        recorded: in the card.
        found: now.
        good: whether they agree.
    """

    what: str
    recorded: Any
    found: Any
    good: bool


def zoo_folder() -> Path:
    """Return the folder of the files that come with the package."""
    return Path(str(files("tfdq.experiments") / "zoo_files"))


def read_cards(folder: Path | None = None) -> dict[str, Card]:
    """Return the cards by name.

    Args:
        folder: with the cards; None: those that come with the package.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a card is damaged or is not that of its file's name.
    """
    folder = zoo_folder() if folder is None else folder
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {str(folder)!r} with model cards")
    return {path.stem: _read(path) for path in sorted(folder.glob("*.json"))}


def _read(path: Path) -> Card:
    try:
        card = Card.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{path.name} is no model card: {place}: {first['msg']}") from error
    if card.name != path.stem:
        raise ValueError(f"{path.name} is the card of {card.name!r}")
    return card


def find_card(name: str, folder: Path | None = None) -> tuple[Card, Path]:
    """Return a card and the path of its file.

    Raises:
        ValueError: there is none of that name.
        FileNotFoundError: the file is not beside its card.
    """
    cards = read_cards(folder)
    if name not in cards:
        known = ", ".join(cards) or "it is empty"
        raise ValueError(f"the zoo has no {name!r}; it has: {known}")
    path = (zoo_folder() if folder is None else folder) / f"{name}.tflite"
    if not path.is_file():
        raise FileNotFoundError(f"{str(path)!r} is missing beside its card")
    return cards[name], path


def copy_file(name: str, target: Path, folder: Path | None = None) -> Path:
    """Copy a file out of the zoo, once its digest is right.

    Args:
        name: of the card.
        target: file or folder to copy to.
        folder: with the cards; None: those that come with the package.

    Raises:
        ValueError: there is none of that name, or it is not the file of its card.
    """
    card, path = find_card(name, folder)
    if _sha256(path) != card.sha256:
        raise ValueError(f"{str(path)!r} is not the file that its card describes: SHA-256 differs")
    target = target / path.name if target.is_dir() else target
    shutil.copyfile(path, target)
    return target


def check(
    name: str,
    folder: Path | None = None,
    data_dir: Path | None = None,
    tell: Callable[[str], None] = lambda note: None,
) -> list[Finding]:
    """Measure the figures of a card again, from the file alone.

    Digest, size, integers only, bits and the clean accuracy must be the same; accuracy under
    attacks on the integer twin may differ by 2 points (other machines round gradients otherwise);
    proven accuracy must not be lower. What was measured with the trained network's gradients is
    not repeated: it needs that network, which the card's command makes.

    Args:
        name: of the card.
        folder: with the cards; None: those that come with the package.
        data_dir: where TFDS data sets are prepared.
        tell: called with a note as it goes on.
    """
    from tfdq.experiments.measuring import evaluation_images
    from tfdq.experiments.networks import load_images
    from tflite_export import Interpreter, integer_only

    card, path = find_card(name, folder)
    content = path.read_bytes()
    found = [
        _same("SHA-256", card.sha256, hashlib.sha256(content).hexdigest()),
        _same("bytes", card.bytes, len(content)),
    ]
    if not found[0].good:
        return found
    model = Interpreter(content)
    bits = card.settings.quantization
    found.append(_same("integer only", True, bool(integer_only(content))))
    found.append(_same("activation bits", bits.activation_bits, activation_bits(model.graph)))
    settings = card.settings.data.model_copy(update={"dir": data_dir})
    dataset = load_images(settings.model_copy(update={"train_images": None}))
    tell("clean accuracy")
    x, y = evaluation_images(dataset, card.clean.images)
    right = int((model.predict(x).argmax(-1) == y).sum())
    found.append(_same("clean accuracy", card.clean.accuracy, right / len(y)))
    for figure in card.robust:
        if figure.gradients == "integer twin":
            tell(f"{', '.join(figure.attacks)} at {figure.eps:g}/255")
            again = _attacked(content, x[: figure.images], y[: figure.images], figure)
            good = abs(again.accuracy - figure.accuracy) <= _TOLERANCE
            what = f"{', '.join(figure.attacks)} at {figure.eps:g}/255 on the twin"
            found.append(Finding(what, figure.accuracy, again.accuracy, good))
    if card.certified:
        tell("proven accuracy")
        count = card.certified[0].images
        again_proven = _certified(content, x[:count], y[:count])
        for proven in card.certified:
            share = next(c.accuracy for c in again_proven if c.eps == proven.eps)
            what = f"proven accuracy at {proven.eps:g}/255"
            found.append(Finding(what, proven.accuracy, share, share >= proven.accuracy - 1e-9))
    return found


def _same(what: str, recorded: Any, found: Any) -> Finding:
    return Finding(what, recorded, found, recorded == found)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def activation_bits(graph: Any) -> int:
    """Return the fewest bits that an activation of a file uses: those behind its ReLUs.

    Args:
        graph: of the file.
    """
    from tflite_export.runtime.inspection import describe

    rows = describe(graph)
    return min((r["activation_bits"] for r in rows if r["activation_bits"]), default=8)


def _share(right: int, images: int) -> dict[str, Any]:
    from tfdq.robustness.statistics import wilson

    share = wilson(right, images)
    return {"accuracy": share.value, "low": share.low, "high": share.high, "images": images}


def _of_bits(text: str) -> dict[str, Any]:
    return _share(text.count("1"), len(text))


def _attacked(content: bytes, x: np.ndarray, y: np.ndarray, like: Robust) -> Robust:
    """Return the accuracy of the file under an attack with its integer twin's gradients."""
    from tfdq.robustness import run_attack
    from tflite_export import IntegerTwin

    twin = IntegerTwin(content)
    standing = np.ones(len(y), bool)
    for name in like.attacks:
        options: dict[str, Any] = {"steps": _CHECKED_STEPS} if name == "pgd" else {}
        standing &= ~run_attack(name, twin, x, y, like.eps / 255, seed=0, **options).success
    return like.model_copy(update=_share(int(standing.sum()), len(y)))


def _certified(content: bytes, x: np.ndarray, y: np.ndarray) -> tuple[Certified, ...]:
    import tfdq

    proof = tfdq.certify(content, x, y, norm="linf", max_steps=_CERTIFIED_STEPS)
    found = []
    for eps in range(1, _CERTIFIED_STEPS + 1):
        right = round(proof.certified_accuracy(eps / 255) * len(y))
        found.append(Certified(eps=eps, **_share(right, len(y))))
    return tuple(found)


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
        **_share(0, len(y)),
    )
    audit = measured.get("audit")
    card = Card(
        format=CARD_FORMAT,
        name=name,
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        settings=_without_place(settings),
        seed=described["seed"],
        clean=Share(**_of_bits(measured["tflite"]["clean"])),
        robust=(*_recorded(measured["tflite"]), _attacked(content, x, y, checked)),
        certified=_certified(content, x, y),
        audit=None
        if audit is None
        else Audit(
            passed=verdict_of(audit).status == "passed",
            failed=verdict_of(audit).reasons,
            examples=audit["examples"],
        ),
        speed_over_float=_speed_over_float(content, settings, dataset),
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
