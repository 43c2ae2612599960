"""What a report is about: a trained network, or an integer file, and what was measured on them."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfdq.report.run_folders import integer_file_of, is_of_demo, networks_in
from tfdq.robustness.statistics import Proportion, wilson
from tflite_export.ir.limits import DEFAULT, Limits

if TYPE_CHECKING:
    from tfdq.data import Dataset
    from tfdq.experiments.fitting import Channels, Resize
    from tfdq.robustness.input_ranges import InputRange


@dataclass(frozen=True)
class ReportedNetwork:
    """A network to report on.

    Attributes:
        name: what it is called in the report.
        model: the trained Keras model; None where there is only the file.
        file: its integer ``.tflite`` file, or None.
        figures: what ``tfdq reproduce`` measured on it, as in ``evaluation-*.json``; or what
            `tfdq.report.measured` measured for this report.
        settings: how it was trained, JSON-ready; empty if unknown.
        environment: versions, commit and machine of the training; empty if unknown.
        limits: what the integer file may cost.
        target: what is attacked, for images in [0, 1]: the model, or the file.
        input_range: what the file takes in place of [0, 1]; None: just that.
    """

    name: str
    model: Any
    file: Path | None
    figures: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    limits: Limits = DEFAULT
    target: Any = None
    input_range: InputRange | None = None

    @property
    def forms(self) -> tuple[tuple[str, str], ...]:
        """What `clean`, `robust` and `worst` know figures of, and what that is called."""
        if self.model is None:
            return (("model", "integer file"),)
        return ("model", "trained"), ("tflite", "integer file")

    def as_taken(self, images: np.ndarray) -> np.ndarray:
        """Return images in [0, 1] as the integer file takes them."""
        return images if self.input_range is None else self.input_range.scaled(images)

    @property
    def strengths(self) -> list[float]:
        """The strengths it was attacked at, in 1/255, weakest first."""
        return sorted(float(key) for key in self.figures["attacks"])

    @property
    def attacks(self) -> list[str]:
        """The attacks, each measured by itself, in the order they ran."""
        return list(next(iter(self.figures["attacks"].values())))

    def clean(self, source: str = "model") -> Proportion | None:
        """Return the clean accuracy of the model or of its file; None if not measured.

        Args:
            source: ``"model"`` or ``"tflite"``.
        """
        part = self.figures if source == "model" else self.figures.get("tflite")
        return None if part is None else share(part["clean"])

    def robust(self, attack: str, strength: float, source: str = "model") -> Proportion | None:
        """Return the accuracy under one attack; None if not measured.

        Args:
            attack: its name.
            strength: in 1/255.
            source: ``"model"`` or ``"tflite"``.
        """
        part = self.figures if source == "model" else self.figures.get("tflite") or {}
        bits = part.get("attacks", {}).get(f"{strength:.10g}", {}).get(attack)
        return None if bits is None else share(bits)

    def worst(self, source: str = "model") -> tuple[float, Proportion, list[str]] | None:
        """Return the worst case over the suite at its largest strength; None if not measured.

        Returns:
            The strength in 1/255, the accuracy, and the suite's attacks.
        """
        part = self.figures if source == "model" else self.figures.get("tflite") or {}
        suite = part.get("suite")
        if not suite:
            return None
        strength = max(suite["eps"], key=float)
        return float(strength), share(suite["eps"][strength]["worst"]), list(suite["attacks"])

    @property
    def digest(self) -> str:
        """SHA-256 of the integer file; empty without one."""
        return "" if self.file is None else hashlib.sha256(self.file.read_bytes()).hexdigest()


def share(bits: str) -> Proportion:
    """Return the share of ones in a string of 0 and 1, with its Wilson interval."""
    return wilson(bits.count("1"), len(bits))


@dataclass(frozen=True)
class ImageSource:
    """Where the images of a report come from.

    Attributes:
        name: name or path of the data set; None: that of the runs.
        directory: where TFDS data sets are prepared.
        size: (height, width), or with channels, that the images of a folder are changed to; None:
            what an integer file takes.
        resize: how those of a folder get their size.
        channels: their order.
        labels: text file with the class of each output, or None.
        input_range: what the models take for black and white, as ``--input-range`` says it; None:
            [0, 1], or, of a file of another maker, the best of the usual ones.
    """

    name: str | None = None
    directory: Path | None = None
    size: tuple[int, ...] | None = None
    resize: Resize = "stretch"
    channels: Channels = "rgb"
    labels: Path | None = None
    input_range: str | None = None

    def options(self) -> list[str]:
        """Return the options of the command line that say the same."""
        said = {
            "--data": self.name,
            "--data-dir": self.directory,
            "--image-size": None if self.size is None else "x".join(map(str, self.size)),
            "--resize": None if self.resize == "stretch" else self.resize,
            "--channels": None if self.channels == "rgb" else self.channels,
            "--labels": self.labels,
            "--input-range": self.input_range,
        }
        return [word for k, v in said.items() if v is not None for word in (k, str(v))]

    def load(self, models: Mapping[Path, Any], seed: int) -> Dataset:
        """Return the images that were named, as models take them."""
        from tfdq.experiments.fitting import Images

        assert self.name is not None
        given = Images(
            self.name,
            self.directory,
            self.size,
            None,
            seed,
            self.resize,
            self.channels,
            self.labels,
        )
        return given.load(models)


def open_networks(
    runs: Sequence[Path],
    source: ImageSource,
    images: int,
    seed: int = 0,
    trust: bool = False,
    limits: Limits = DEFAULT,
    tell: Callable[[str], None] = lambda note: None,
) -> tuple[list[ReportedNetwork], np.ndarray, np.ndarray]:
    """Open run folders and model files, and the test images to look at them with.

    Args:
        runs: folders of single runs, as ``tfdq reproduce`` leaves in ``runs/`` and ``tfdq train``
            in its own; folders of ``tfdq demo`` or ``tfdq reproduce``, for all networks in
            them; Keras model files; or integer ``.tflite`` files of whatever maker.
        source: of the images; its name is needed for files, and takes the place of a run's own.
        images: how many test images at most.
        seed: of the choice of images that input ranges are tried on.
        trust: run code that the models hold.
        limits: what each integer file may cost.
        tell: called with what was found out about a file's input range.

    Returns:
        The networks, images in [0, 1] and labels.

    Raises:
        FileNotFoundError: a path is not there, or is no finished run; says what to run.
        ValueError: no images are named, the runs are of different data, or a file answers no better
            than by chance on every usual input range.
    """
    from tfdq.experiments.fitting import check_fit, fitted
    from tfdq.experiments.measuring import evaluation_images
    from tfdq.experiments.networks import load_images
    from tfdq.experiments.opening import check_weights, open_integer_file
    from tfdq.experiments.settings import DataSettings

    missing = [str(run) for run in runs if not run.exists()]
    if missing:
        raise FileNotFoundError(
            f"there is no {', '.join(missing)}; name folders of runs, Keras models or .tflite files"
        )
    runs = networks_in(runs)
    opened = [(_open_folder if run.is_dir() else _open_file)(run, trust) for run in runs]
    names = _told_apart([network.name for network in opened], runs)
    opened = [replace(s, name=name, limits=limits) for name, s in zip(names, opened, strict=True)]
    alone = {
        run: open_integer_file(network.file, limits=limits)
        for run, network in zip(runs, opened, strict=True)
        if network.model is None and network.file is not None
    }
    if source.input_range is not None and len(alone) < len(runs):
        raise ValueError(
            "--input-range is for .tflite files: the trained networks of tfdq take [0, 1]"
        )
    if source.name is not None:
        dataset = source.load(alone, seed)
    elif source.size is not None or source.labels is not None:
        raise ValueError(
            "--image-size and --labels are for the images of a folder: give that with --data"
        )
    else:
        described = [network.settings.get("data") for network in opened]
        if None in described:
            raise ValueError(
                "a file does not say what it is for, nor does a folder that `tfdq train` of an "
                "earlier version wrote: give its images with --data"
            )
        data = [DataSettings.model_validate(one) for one in described]
        # A report is of the test images, wherever they lie and whichever others it learned from.
        apart = {"dir", "digest", "train_images"}
        if any(one.model_dump(exclude=apart) != data[0].model_dump(exclude=apart) for one in data):
            raise ValueError("the runs are of different data; report on them apart, or give --data")
        settings = next((one for one in data if one.digest is not None), data[0])
        if source.directory is not None:
            settings = settings.model_copy(update={"dir": source.directory})
        dataset = load_images(settings)
    for place, (run, network) in enumerate(zip(runs, opened, strict=True)):
        if run in alone:
            target = fitted(run, alone[run], dataset, source.input_range, seed, limits, tell)
            taken = getattr(target, "range", None)
            opened[place] = replace(network, target=target, input_range=taken)
            continue
        opened[place] = replace(network, target=network.model)
        check_weights(network.model, str(run))
        check_fit(network.model, str(run), dataset)
        if network.file is not None:
            opened_file = open_integer_file(network.file, limits=limits)
            check_fit(opened_file, str(network.file), dataset)
    x, y = evaluation_images(dataset, images)
    return opened, x, y


def _told_apart(names: Sequence[str], runs: Sequence[Path]) -> list[str]:
    """Return the names, those that several have with as much of the paths as tells them apart.

    Raises:
        ValueError: a path is given twice.
    """
    paths = [run.resolve() for run in runs]
    if len(set(paths)) < len(paths):
        raise ValueError(f"the same run is given twice: {', '.join(map(str, runs))}")
    found = list(names)
    for name in {name for name in names if names.count(name) > 1}:
        same = [index for index, other in enumerate(names) if other == name]
        length = max(len(paths[index].parts) for index in same)
        for count in range(1, length + 1):
            tails = ["/".join(paths[index].parts[-count:]) for index in same]
            if len(set(tails)) == len(tails):
                break
        for index, tail in zip(same, tails, strict=True):
            own = name in (paths[index].stem, paths[index].name)
            found[index] = tail if own else f"{name} ({tail})"
    return found


def _open_folder(folder: Path, trust: bool) -> ReportedNetwork:
    from tfdq.experiments.folder import folder_kind
    from tfdq.experiments.opening import open_keras_model

    if not (folder / "model.keras").exists():
        raise FileNotFoundError(
            f"{str(folder)!r} is no finished run (there is no model.keras in it); name a folder "
            "that `tfdq demo`, `tfdq train` or `tfdq reproduce` wrote, or a Keras model file"
        )
    described = _read(folder / "settings.json")
    settings = described.get("settings") or {}
    if not isinstance(settings, dict):
        raise ValueError(f"{str(folder / 'settings.json')!r} was not written by tfdq")
    evaluations = sorted(folder.glob("evaluation-*.json"), key=lambda path: path.stat().st_mtime)
    file = folder / "model.tflite"
    # A training of its own, `tfdq train`, is called as its folder.
    of_a_recipe = "quantization" in settings and folder_kind(folder) != "train"
    network = ReportedNetwork(
        _describe(settings, described.get("seed")) if of_a_recipe else folder.name,
        open_keras_model(folder / "model.keras", trust),
        file if file.exists() else None,
        _read(evaluations[-1]) if evaluations else {},
        {"seed": described.get("seed"), **settings} if settings else {},
        _read(folder / "environment.json"),
    )
    if evaluations:
        _check_figures(network, evaluations[-1])
    return network


def _check_figures(network: ReportedNetwork, path: Path) -> None:
    """Check that the figures of a file are what a report reads.

    Raises:
        ValueError: they are not.
    """
    try:
        for source in ("model", "tflite"):
            network.clean(source)
            network.worst(source)
            for strength, attack in itertools.product(network.strengths, network.attacks):
                network.robust(attack, strength, source)
        for check in (network.figures.get("audit") or {"checks": ()})["checks"]:
            [check[key] for key in ("name", "status", "criterion", "remark")]
    except (AttributeError, KeyError, StopIteration, TypeError, ValueError) as error:
        raise ValueError(f"{str(path)!r} was not written by `tfdq reproduce`: {error!r}") from error


def _open_file(path: Path, trust: bool) -> ReportedNetwork:
    from tfdq.experiments.opening import open_keras_model

    if path.suffix == ".tflite":
        return ReportedNetwork(path.stem, None, path, {})
    model = open_keras_model(path, trust)
    settings = {"data": {"name": "digits"}} if is_of_demo(path) else {}
    return ReportedNetwork(path.stem, model, integer_file_of(path), {}, settings)


def _describe(settings: dict[str, Any], seed: Any) -> str:
    """Return a short name: bits, penalty, adversarial training, seed."""
    bits = settings.get("quantization", {}).get("activation_bits", 0)
    penalty = settings.get("penalty", {})
    words = ["float" if not bits else f"{bits} bits"]
    if penalty.get("beta"):
        words.append(f"{penalty.get('name', 'penalty')} on {penalty.get('on')} {penalty['beta']:g}")
    elif bits:
        words.append("no penalty")
    adversarial = settings.get("adversarial") or {}
    if adversarial.get("attack") not in (None, "none"):
        words.append(f"{adversarial['attack']} training")
    return ", ".join(words) + f", seed {seed}"


def _read(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file that tfdq wrote; nothing if there is none."""
    from tfdq.robustness.json_files import read_json

    if not path.exists():
        return {}
    return read_json(path, "remove it to report without it, or name another run")
