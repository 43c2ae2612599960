"""Train one classifier into a folder, and measure one that stands there."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

import tfdq
from tfdq.data import Dataset
from tfdq.experiments.fitting import check_fit
from tfdq.experiments.folder import hold, join_folder
from tfdq.experiments.images import scaled
from tfdq.experiments.networks import build, with_start_digest
from tfdq.experiments.placement import machines_of
from tfdq.experiments.recipe_of_run import recipe_of_run
from tfdq.experiments.resumable import train_run
from tfdq.experiments.run_folder import MODEL, finished
from tfdq.experiments.settings import RunSettings
from tfdq.robustness.json_files import naming, read_json
from tfdq.robustness.progress import progress_bar
from tfdq.robustness.result_store import digest, write_atomically
from tfdq.robustness.statistics import wilson
from tfdq.robustness.versions import package_versions
from tfdq.which_keras import is_keras3_model, is_tf_keras_model

KIND = "train"
SETTINGS = "settings.json"
CALIBRATION_IMAGES = 1000
RECIPE = "recipe.toml"
_FIGURES = {"test_accuracy": float, "test_images": int}
_DIGESTS = {"data.digest": "other images", "model.start": "another model to start from"}


def train_classifier(
    settings: RunSettings,
    seed: int,
    dataset: Dataset,
    out: Path,
    trust: bool = False,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Train a classifier and write ``model.keras``, ``training.json`` and ``recipe.toml``.

    Started again with the same arguments after it was interrupted, at whatever moment, it goes on
    from its last checkpoint (after every epoch, and every 500 steps); a training that is finished
    there is not repeated. ``tfdq reproduce`` repeats it from the recipe.

    Args:
        settings: what is trained and how; the images and the model to start from are recorded.
        seed: of everything.
        dataset: the images, those of ``load_images(settings.data)``.
        out: the run's folder.
        trust: run code that the file of ``settings.model.start`` holds.
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
    settings = _with_digests(settings, dataset)
    kept = _kept(out, settings, seed)
    if kept is not None and (record := finished(out, _FIGURES)) is not None:
        return record
    # What does not fit is said before anything is written.
    name = build(settings, dataset, trust=trust).name
    with hold(join_folder(out, KIND)) as folder:
        write_atomically(folder / RECIPE, recipe_of_run(settings, seed, f"tfdq train: {name}"))
        epochs = settings.training.epochs
        with progress_bar(f"training {name}", epochs, progress) as advance:

            def go_on(epochs: int) -> None:
                for epoch in range(epochs):
                    advance(f"epoch {epoch + 1}")

            return train_run(
                kept or settings,
                seed,
                dataset,
                folder,
                machines_of(settings.training.backend, "one_device"),
                on_epoch=advance,
                on_start=go_on,
                add_figures=lambda model: _figures(model, dataset, settings),
                trust=trust,
            )


def _with_digests(settings: RunSettings, dataset: Dataset) -> RunSettings:
    """Return settings that say which images, and which model to start from, are meant."""
    images = {"digest": digest(dataset.x_train, dataset.y_train)}
    data = settings.data.model_copy(update=images)
    return with_start_digest(settings.model_copy(update={"data": data}))


def _kept(out: Path, settings: RunSettings, seed: int) -> RunSettings | None:
    """Return the settings of the same training, if a folder holds it; None: it holds none.

    The same images may have another path there.

    Raises:
        ValueError: the folder holds another training; says what differs.
    """
    kept = out / SETTINGS
    if not kept.exists():
        return None
    remedy = "remove it to train here with the settings of this call, or give another folder"
    found = read_json(kept, remedy, {"settings": dict, "seed": int})
    if "quantized" in found["settings"]:
        good = "; its model.keras is good" if (out / MODEL).exists() else ""
        raise ValueError(
            f"{str(out)!r} holds a training of an earlier version, whose settings were written "
            f"otherwise{good}: give another folder with --out to train"
        )
    with naming(kept, remedy):
        known = RunSettings.model_validate(found["settings"])
    wanted = settings
    if known.data.digest is not None and known.data.digest == settings.data.digest:
        wanted = settings.changed({"data.name": known.data.name})
    differing = _differences(
        {**known.trained(), "seed": found["seed"]}, {**wanted.trained(), "seed": seed}
    )
    if differing:
        raise ValueError(
            f"{str(out)!r} holds a training with other settings ({', '.join(differing)}); give "
            "another folder with --out"
        )
    return wanted


def _differences(found: dict[str, Any], wanted: dict[str, Any], prefix: str = "") -> list[str]:
    """Return `name: was, now` of the settings that differ, by dotted name."""
    texts = []
    for name in sorted({*found, *wanted}):
        was, now, place = found.get(name), wanted.get(name), f"{prefix}{name}"
        if isinstance(was, dict) and isinstance(now, dict):
            texts += _differences(was, now, f"{place}.")
        elif was != now:
            texts.append(_DIGESTS.get(place) or f"{place}: {was}, now {now}")
    return texts


def _figures(model: Any, dataset: Dataset, settings: RunSettings) -> dict[str, Any]:
    """Return what is measured on the trained model, and what it was made with."""
    measured = measure(model, scaled(dataset.x_test), dataset.y_test)
    return {
        "test_accuracy": measured["accuracy"],
        "test_images": measured["images"],
        "settings": settings.model_dump(mode="json", exclude={"evaluation"}),
        "versions": package_versions(),
    }


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


def quantized_after_training(model: Any, dataset: Dataset) -> Any:
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
    if outputs.ndim == 1:
        predicted = outputs  # a file that ends in ARG_MAX
    else:
        one = outputs.shape[-1] == 1
        predicted = outputs[..., 0] > 0 if one else np.argmax(outputs, axis=-1)
    return {
        "accuracy": float(np.mean(predicted == labels)),
        "images": len(images),
        "images_per_second": len(images) / seconds,
    }
