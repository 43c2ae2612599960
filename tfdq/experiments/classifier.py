"""Train one classifier into a folder, and measure one that stands there."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tf_keras

import tfdq
from tfdq.data import Dataset
from tfdq.experiments.folder import hold, join_folder, write_json
from tfdq.experiments.resumable import Task, environment, finished, train_task
from tfdq.experiments.strategy import open_machines
from tfdq.experiments.training import TrainingSettings, scaled
from tfdq.models import create
from tfdq.penalties.singular_values import SingularValue
from tfdq.quantization import Settings
from tfdq.robustness import AdversarialTraining
from tfdq.robustness.json_files import read_json
from tfdq.robustness.progress import progress_bar
from tfdq.robustness.result_store import digest
from tfdq.robustness.statistics import wilson
from tfdq.robustness.versions import package_versions
from tfdq.which_keras import is_keras3_model, is_tf_keras_model
from tflite_export.ir.limits import DEFAULT, Limits

KIND = "train"
SETTINGS = "settings.json"
CALIBRATION_IMAGES = 1000
_DIGESTS = {"images": "other images", "start_sha256": "another model to start from"}
ADVERSARIAL = ("none", "fgsm", "r+fgsm", "pgd")


@dataclass(frozen=True)
class ClassifierSettings:
    """What is trained and how.

    Attributes:
        model: name for ``tfdq.models.create``.
        start: a trained float model to take the place of a new one, or None.
        quantized: quantization-aware; else float.
        beta: weight of the Lipschitz penalty; 0: none.
        on: the kernel it acts on, as in ``tfdq.quantize_model``.
        target: the singular value it aims at, as there; None: its default.
        activation_bits: 1..8.
        weight_bits: 2..8.
        first_last_bits: 2..8, or None for the same as all others.
        batch_norm_momentum: of BatchNorm's moving statistics, where quantized; None: the model's.
        adversarial: ``"none"``, or the attack to train against.
        eps: its strength, in input units.
        training: how long, how fast.
        trust: run code that the file of ``start`` holds.
    """

    model: str = "small_cnn"
    start: Path | None = None
    quantized: bool = True
    beta: float = 2e-3
    on: Any = "deployed"
    target: SingularValue | None = None
    activation_bits: int = 4
    weight_bits: int = 8
    first_last_bits: int | None = None
    batch_norm_momentum: float | None = 0.9
    adversarial: str = "none"
    eps: float = 8 / 255
    training: TrainingSettings = field(default_factory=TrainingSettings)
    trust: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.eps <= 1:
            raise ValueError(f"eps must be in 0..1, in units of images in [0, 1], got {self.eps}")
        if self.adversarial not in ADVERSARIAL:
            raise ValueError(
                f"adversarial must be one of {', '.join(ADVERSARIAL)}, got {self.adversarial!r}"
            )
        Settings(
            lipschitz_beta=self.beta,
            on=self.on,
            target=self.target,
            activation_bits=self.activation_bits,
            weight_bits=self.weight_bits,
            first_last_bits=self.first_last_bits,
            batch_norm_momentum=self.batch_norm_momentum,
        )


def train_classifier(
    settings: ClassifierSettings, dataset: Dataset, out: Path, progress: bool | None = None
) -> dict[str, Any]:
    """Train a classifier and write ``model.keras`` and ``training.json``.

    Started again with the same arguments after it was interrupted, at whatever moment, it goes on
    from its last checkpoint (after every epoch, and every 500 steps); a training that is finished
    there is not repeated.

    Args:
        settings: what and how.
        dataset: the images.
        out: the run's folder.
        progress: show a progress bar on stderr; None: where that is a terminal.

    Returns:
        The figures of the run, as in ``training.json``.

    Raises:
        FileNotFoundError: the model to start from is not there.
        ValueError: a setting does not fit the data, or the folder belongs to something else, a
            training with other settings for one.
        DivergedError: the training diverged.
        OSError: the folder can't be written; what was finished is kept.
    """
    described = _described(settings, dataset)
    record = _finished(out, described)
    if record is not None:
        return record
    # What does not fit is said before anything is written.
    tf_keras.utils.set_random_seed(settings.training.seed)
    name = _model(settings, dataset).name
    with hold(join_folder(out, KIND)) as folder:
        if not (folder / SETTINGS).exists():
            write_json(folder / SETTINGS, described)
            write_json(folder / "environment.json", environment(open_machines("one_device")))
        task = Task(
            settings.training,
            build=lambda synchronized: _model(settings, dataset),
            quantized=settings.quantized,
            wrap=lambda model: _wrapped(model, settings),
            remedy="lower the learning rate or beta, and give another folder",
        )
        with progress_bar(f"training {name}", settings.training.epochs, progress) as advance:

            def go_on(epochs: int) -> None:
                for epoch in range(epochs):
                    advance(f"epoch {epoch + 1}")

            return train_task(
                task,
                dataset,
                folder,
                open_machines("one_device"),
                on_epoch=advance,
                on_start=go_on,
                add_figures=lambda model: _figures(model, dataset, described),
            )


def _described(settings: ClassifierSettings, dataset: Dataset) -> dict[str, Any]:
    """Return what a training depends on, as JSON keeps it: settings, start, images."""
    start = settings.start
    if start is not None and not start.exists():
        raise FileNotFoundError(f"no model at {str(start)!r}; give a .keras or .h5 file")
    given = {
        **asdict(settings),
        "start": None if start is None else str(start),
        "start_sha256": _sha256(start) if start is not None and start.is_file() else None,
        "images": digest(dataset.x_train, dataset.y_train),
    }
    return {"seed": settings.training.seed, "settings": given}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _finished(out: Path, described: dict[str, Any]) -> dict[str, Any] | None:
    """Return the record of the same training, if it is finished in a folder.

    Raises:
        ValueError: the folder holds another training; says what differs.
        DivergedError: the training diverged there.
    """
    kept = out / SETTINGS
    if not kept.exists():
        return None
    remedy = "remove it to train here with the settings of this call, or give another folder"
    found = read_json(kept, remedy, {"settings": dict})["settings"]
    wanted = json.loads(json.dumps(described["settings"]))
    differing = _differences(found, wanted)
    if differing:
        raise ValueError(
            f"{str(out)!r} holds a training with other settings ({', '.join(differing)}); give "
            "another folder with --out"
        )
    return finished(out, {"test_accuracy": float, "test_images": int})


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Return `name: was, now` of the settings that differ, those of the training included."""
    ignored = {"trust"}
    if wanted.get("start_sha256") is not None:
        # The same file may be named from another folder.
        ignored.add("start")
    texts = []
    for name in sorted({*found, *wanted} - ignored):
        was, now = found.get(name), wanted.get(name)
        if isinstance(was, dict) and isinstance(now, dict):
            texts += _differences(was, now)
        elif was != now:
            texts.append(_DIGESTS.get(name) or f"{name}: {was}, now {now}")
    return texts


def _wrapped(model: tf_keras.Model, settings: ClassifierSettings) -> tf_keras.Model:
    """Return what is fitted: the model, or adversarial training of it."""
    if settings.adversarial == "none":
        return model
    return AdversarialTraining(
        model, settings.adversarial, settings.eps, seed=settings.training.seed
    )


def _figures(model: tf_keras.Model, dataset: Dataset, described: dict[str, Any]) -> dict[str, Any]:
    """Return what is measured on the trained model, and what it was made with."""
    measured = measure(model, scaled(dataset.x_test), dataset.y_test)
    return {
        "test_accuracy": measured["accuracy"],
        "test_images": measured["images"],
        "settings": described["settings"],
        "versions": package_versions(),
    }


def _model(settings: ClassifierSettings, dataset: Dataset) -> tf_keras.Model:
    """Return the model to train, quantization-aware or float."""
    if settings.start is None:
        model = create(settings.model, dataset.input_shape, dataset.classes)
    else:
        model = tfdq.load_model(settings.start, compile=False, safe_mode=not settings.trust)
        check_fit(model, str(settings.start), dataset)
    if not settings.quantized:
        return model
    return tfdq.quantize_model(
        model,
        settings.beta,
        on=settings.on,
        activation_bits=settings.activation_bits,
        weight_bits=settings.weight_bits,
        first_last_bits=settings.first_last_bits,
        batch_norm_momentum=settings.batch_norm_momentum,
        target=settings.target,
        input_range=(0.0, 1.0),
    )


def check_fit(model: Any, name: str, dataset: Dataset) -> None:
    """Check that a model takes the images of a data set, and has one output for each class.

    Args:
        model: a Keras model of one input, a ``tflite_export.IntegerTwin`` or an ``Interpreter``.
        name: what it is called in the error.
        dataset: the images.

    Raises:
        ValueError: it does not fit; says what does.
    """
    if hasattr(model, "input_tensors"):
        shape, outputs = model.input_tensors[0].shape, model.output_tensors[0].shape
    else:
        shape, outputs = model.input_shape, model.output_shape
    if isinstance(shape, (list, dict)) or isinstance(outputs, (list, dict)):
        raise ValueError(f"{name!r} has several inputs or outputs; use it from Python")
    wanted, given = tuple(shape[1:]), dataset.input_shape
    sizes = zip(wanted, given, strict=False)
    if len(wanted) != len(given) or any(side not in (None, -1, real) for side, real in sizes):
        size = ""
        if len(wanted) == 3 and wanted[2] in (1, 3):
            channels = "" if wanted[2] == given[2] else f"x{wanted[2]}"
            height, width = (
                real if side in (None, -1) else side
                for side, real in zip(wanted[:2], given[:2], strict=True)
            )
            size = f"; --image-size {height}x{width}{channels} changes the images of a folder"
        raise ValueError(
            f"{name!r} takes images {wanted}, but those of {dataset.name} are {given}{size}"
        )
    # One output stands for two classes.
    if outputs[-1] != dataset.classes and (outputs[-1], dataset.classes) != (1, 2):
        raise ValueError(
            f"{name!r} has {outputs[-1]} outputs, but {dataset.name} has {dataset.classes} classes"
        )


def open_integer_file(path: Path, twin: bool = False, limits: Limits = DEFAULT) -> Any:
    """Return the interpreter of a ``.tflite`` file, or its integer twin, which has gradients.

    Args:
        path: of the file.
        twin: return the integer twin.
        limits: what the file may cost.

    Raises:
        ValueError: it is damaged, of another kind, or costs more than its limits; names the file.
    """
    from tflite_export import IntegerTwin, Interpreter

    return IntegerTwin(path, limits=limits) if twin else Interpreter(path, limits=limits)


def check_weights(model: tf_keras.Model, name: str) -> None:
    """Check that the weights of a model are numbers.

    Args:
        model: the model.
        name: what it is called in the error.

    Raises:
        ValueError: some are NaN or infinite; names the first.
    """
    for weight in model.weights:
        values = np.asarray(weight)
        if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
            raise ValueError(
                f"{name!r} has NaN or infinite weights ({weight.name}): its training diverged; "
                "train it again with a lower learning rate"
            )


def no_better_than_chance(figures: dict[str, Any], dataset: Dataset) -> str | None:
    """Say it if a test accuracy can't be told from always answering the commonest class.

    Args:
        figures: of `train_classifier`.
        dataset: whose test images they are of.
    """
    images = figures["test_images"]
    accuracy = wilson(round(figures["test_accuracy"] * images), images)
    commonest = float(np.bincount(dataset.y_test).max() / len(dataset.y_test))
    if accuracy.low > commonest:
        return None
    return (
        f"a test accuracy of {accuracy.value:.4f} can't be told from always answering the "
        f"commonest class, {commonest:.4f}: the network learnt nothing"
    )


def quantized_after_training(model: tf_keras.Model, dataset: Dataset) -> tf_keras.Model:
    """Return an 8-bit copy of a float model, its ranges set on training images, not trained.

    Args:
        model: takes images in [0, 1].
        dataset: at most 1,000 of its training images are used.

    Raises:
        ValueError: the model cannot be quantized, or the images do not fit it.
    """
    check_fit(model, model.name, dataset)
    quantized = tfdq.quantize_model(
        model, 0.0, activation_range="moving_average", input_range=(0.0, 1.0)
    )
    count = min(CALIBRATION_IMAGES, len(dataset.x_train))
    chosen = np.random.default_rng(0).choice(len(dataset.x_train), count, replace=False)
    return tfdq.calibrate(quantized, scaled(dataset.x_train[chosen]))


def measure(model: Any, images: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Return accuracy and speed of a model on images in [0, 1].

    Args:
        model: a Keras model or a ``tflite_export.Interpreter``.
        images: float32, ``(n, height, width, channels)``.
        labels: ``(n,)``.
    """
    is_keras = is_tf_keras_model(model) or is_keras3_model(model)
    options = {"verbose": 0} if is_keras else {}
    model.predict(images[:64], **options)
    start = time.perf_counter()
    outputs = model.predict(images, **options)
    seconds = time.perf_counter() - start
    one = outputs.shape[-1] == 1
    predicted = outputs[..., 0] > 0 if one else np.argmax(outputs, axis=-1)
    return {
        "accuracy": float(np.mean(predicted == labels)),
        "images": len(images),
        "images_per_second": len(images) / seconds,
    }
