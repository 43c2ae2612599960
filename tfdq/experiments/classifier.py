"""Train one classifier into a folder, and measure one that stands there."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tf_keras

import tfdq
from tfdq.data import Dataset
from tfdq.experiments.folder import open_folder, write_json
from tfdq.experiments.training import TrainingSettings, scaled, train
from tfdq.models import create
from tfdq.quantization import Settings
from tfdq.robustness import AdversarialTraining
from tfdq.robustness.progress import progress_bar
from tfdq.robustness.versions import package_versions
from tflite_export import round_biases

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
        activation_bits: 1..8.
        weight_bits: 2..8.
        first_last_bits: 2..8, or None for the same as all others.
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
    activation_bits: int = 4
    weight_bits: int = 8
    first_last_bits: int | None = None
    adversarial: str = "none"
    eps: float = 8 / 255
    training: TrainingSettings = field(default_factory=TrainingSettings)
    trust: bool = False

    def __post_init__(self) -> None:
        if self.adversarial not in ADVERSARIAL:
            raise ValueError(
                f"adversarial must be one of {', '.join(ADVERSARIAL)}, got {self.adversarial!r}"
            )
        Settings(
            lipschitz_beta=self.beta,
            on=self.on,
            activation_bits=self.activation_bits,
            weight_bits=self.weight_bits,
            first_last_bits=self.first_last_bits,
        )


def train_classifier(
    settings: ClassifierSettings, dataset: Dataset, out: Path, progress: bool | None = None
) -> dict[str, Any]:
    """Train a classifier and write ``model.keras`` and ``training.json``.

    Args:
        settings: what and how.
        dataset: the images.
        out: the run's folder.
        progress: show a progress bar on stderr; None: where that is a terminal.

    Returns:
        The figures of the run.

    Raises:
        ValueError: a setting does not fit the data, or the folder belongs to something else.
        RuntimeError: the training diverged.
    """
    started = time.perf_counter()
    tf_keras.utils.set_random_seed(settings.training.seed)
    model = _model(settings, dataset)
    trained: tf_keras.Model | None = None
    if settings.adversarial != "none":
        trained = AdversarialTraining(
            model, settings.adversarial, settings.eps, seed=settings.training.seed
        )
    with open_folder(out, "train") as folder:
        with progress_bar(f"training {model.name}", settings.training.epochs, progress) as advance:

            def tell(logs: dict[str, float]) -> None:
                advance(", ".join(f"{name} {value:.3f}" for name, value in logs.items()))

            history = train(model, dataset, settings.training, tell, trained)
        if settings.quantized:
            # So that the model that is kept, attacked and reported is the one that ships.
            round_biases(model)
        model.save(folder / "model.keras")
        measured = measure(model, scaled(dataset.x_test), dataset.y_test)
        figures = {
            "test_accuracy": measured["accuracy"],
            "test_images": measured["images"],
            "history": {name: [float(v) for v in values] for name, values in history.items()},
            "settings": {
                **asdict(settings),
                "start": None if settings.start is None else str(settings.start),
            },
            "data": {"name": dataset.name, "source": dataset.source},
            "versions": package_versions(),
            "seconds": time.perf_counter() - started,
        }
        write_json(folder / "training.json", figures)
    return figures


def _model(settings: ClassifierSettings, dataset: Dataset) -> tf_keras.Model:
    """Return the model to train, quantization-aware or float."""
    if settings.start is None:
        model = create(settings.model, dataset.input_shape, dataset.classes)
    else:
        model = tfdq.load_model(settings.start, compile=False, safe_mode=not settings.trust)
        if tuple(model.input_shape[1:]) != dataset.input_shape:
            raise ValueError(
                f"{str(settings.start)!r} takes images {model.input_shape[1:]}, but those of "
                f"{dataset.name} are {dataset.input_shape}"
            )
        if model.output_shape[-1] != dataset.classes:
            raise ValueError(
                f"{str(settings.start)!r} has {model.output_shape[-1]} outputs, but "
                f"{dataset.name} has {dataset.classes} classes"
            )
    if not settings.quantized:
        return model
    return tfdq.quantize_model(
        model,
        settings.beta,
        on=settings.on,
        activation_bits=settings.activation_bits,
        weight_bits=settings.weight_bits,
        first_last_bits=settings.first_last_bits,
        input_range=(0.0, 1.0),
    )


def measure(model: Any, images: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Return accuracy and speed of a model on images in [0, 1].

    Args:
        model: a tf_keras model or a ``tflite_export.Interpreter``.
        images: float32, ``(n, height, width, channels)``.
        labels: ``(n,)``.
    """
    options = {"verbose": 0} if isinstance(model, tf_keras.Model) else {}
    model.predict(images[:64], **options)
    start = time.perf_counter()
    outputs = model.predict(images, **options)
    seconds = time.perf_counter() - start
    return {
        "accuracy": float(np.mean(np.argmax(outputs, axis=-1) == labels)),
        "images": len(images),
        "images_per_second": len(images) / seconds,
    }
