"""The whole trip on real images: train, quantize, attack, export, run, in one command."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tfdq.data import Dataset, load
from tfdq.demo.plots import plot_bits, plot_epsilons
from tfdq.demo.settings import DemoSettings
from tfdq.experiments.folder import open_folder, write_json
from tfdq.experiments.images import scaled
from tfdq.experiments.networks import quantized
from tfdq.experiments.process import TF_KERAS, versions_of
from tfdq.experiments.settings import RunSettings, TrainingSettings
from tfdq.models import small_cnn
from tfdq.robustness import RobustnessReport, error_amplification, evaluate, run_attack
from tfdq.robustness.progress import progress_bar
from tfdq.robustness.statistics import Proportion
from tflite_export import ExportedModel, convert, integer_only, round_biases

ATTACKS = ("fgsm", "r+fgsm", "pgd")
PGD_STEPS = 20
DEPLOYED = "DQ"
FORMS = {
    "float": "not quantized",
    "VQ": "quantized in the usual way",
    "DQ (paper)": "penalty on the trained kernel, target 1, and range [0, 6], as in the paper",
    DEPLOYED: "penalty on the deployed kernel (BatchNorm folded in, fake-quantized), target 1/k",
}


# What the quantized forms have other than the settings of the demo's run.
_FORM_SETTINGS: dict[str, dict[str, Any]] = {
    "VQ": {"penalty.beta": 0.0},
    "DQ (paper)": {
        "penalty.on": "kernel",
        "penalty.target": 1.0,
        "quantization.activation_range": "relu6",
    },
    DEPLOYED: {},
}


@dataclass
class DemoResult:
    """What the demo found.

    Attributes:
        settings: what it was asked for.
        dataset: the images.
        report: accuracies of every model and .tflite file.
        exports: the integer files.
        sizes: bytes of every model and file.
        speeds: images/s of every model and file, batch 64, one thread.
        bits: form -> activation bits -> (clean, robust) accuracy.
        seconds: how long it all took.
    """

    settings: DemoSettings
    dataset: Dataset
    report: RobustnessReport
    exports: dict[str, ExportedModel]
    sizes: dict[str, int]
    speeds: dict[str, float]
    bits: dict[str, dict[int, tuple[Proportion, Proportion]]] = field(default_factory=dict)
    seconds: float = 0.0


def run_demo(settings: DemoSettings, progress: bool | None = None) -> DemoResult:
    """Run the demo and write its folder.

    The folder gets ``results.json``, ``models/*.keras``, ``*.tflite``, ``plots/*.png`` and the
    finished pieces of the evaluation; everything is written as soon as it is there.

    Args:
        settings: what to do.
        progress: show progress bars on stderr; None: where that is a terminal.

    Raises:
        ValueError: a setting is out of range, or the folder belongs to something else.
        OSError: the folder can't be written.
    """
    started = time.perf_counter()
    with open_folder(settings.out, "demo") as out:
        dataset = load("digits")
        models = _train_forms(settings, dataset, out, progress)
        x, y = scaled(dataset.x_test), dataset.y_test
        exports = _export(models, x, out)
        report = _evaluate(settings, models, exports, x, y, out, progress)
        _plot_amplification(settings, models, x, y, out)
        quantized = [name for name in models if name != "float"]
        plot_epsilons(report, list(models), "pgd", out / "plots" / "epsilons.png")
        result = DemoResult(
            settings,
            dataset,
            report,
            exports,
            sizes=_sizes(models, exports, out),
            speeds=_speeds(models, exports, x),
        )
        result.bits = _sweep(settings, dataset, models["float"], result, progress)
        clean = report.clean("float")
        plot_bits(
            result.bits,
            (clean, report.robust("float", settings.epsilon, "pgd")),
            f"Robust: under PGD-{PGD_STEPS}, eps {settings.epsilon * 255:.0f}/255",
            out / "plots" / "bits.png",
        )
        result.seconds = time.perf_counter() - started
        write_json(out / "results.json", _as_dict(result, quantized))
    return result


def _quantized(model: Any, name: str, run: RunSettings) -> Any:
    """Return one of the quantization-aware forms of a float model."""
    return quantized(model, run.changed(_FORM_SETTINGS[name]))


def _train_forms(
    settings: DemoSettings,
    dataset: Dataset,
    out: Path,
    progress: bool | None,
) -> dict[str, Any]:
    """Train a float model, then train each form on from there, all for the same time."""
    of_keras3 = settings.run.training.backend != TF_KERAS
    library = importlib.import_module("keras" if of_keras3 else TF_KERAS)
    library.utils.set_random_seed(settings.seed)
    start = small_cnn(dataset.input_shape, dataset.classes, keras=3 if of_keras3 else 2)
    models: dict[str, Any] = {}
    with progress_bar(
        "training", settings.run.training.epochs * (1 + len(FORMS)), progress
    ) as advance:

        def tell(name: str) -> Callable[[dict[str, float]], None]:
            return lambda logs: advance(f"{name}, accuracy {logs['accuracy']:.3f}")

        _train(start, dataset, settings.run.training, tell("float, first half"), settings.seed)
        for name in FORMS:
            if name == "float":
                model = library.models.clone_model(start)
                model.set_weights(start.get_weights())
            else:
                model = _quantized(start, name, settings.run)
            _train(model, dataset, settings.run.training, tell(name), settings.seed)
            if name != "float" and not of_keras3:
                # So that the model that is kept, attacked and reported is the one that ships.
                round_biases(model)
            model.save(out / "models" / f"{_slug(name)}.keras")
            models[name] = model
    return models


def _train(
    model: Any,
    dataset: Dataset,
    training: TrainingSettings,
    tell: Callable[[dict[str, float]], None],
    seed: int,
) -> None:
    """Train a model of either Keras; what is told are the figures of each epoch."""
    if training.backend == TF_KERAS:
        from tfdq.experiments.training import train

        train(model, dataset, training, tell, seed=seed)
        return
    from tfdq.experiments.keras3_training import train as train_on_keras3

    train_on_keras3(model, dataset, training, tell, seed=seed)


def _slug(name: str) -> str:
    return name.lower().replace(" ", "_").replace("(", "").replace(")", "")


def file_name(name: str) -> str:
    """Return how the integer file of a model is called in tables."""
    return f"{name} .tflite"


def _export(models: dict[str, Any], x: np.ndarray, out: Path) -> dict[str, ExportedModel]:
    """Export the quantized models; each file is proven integer-only and equal to its twin."""
    exports = {}
    for name, model in models.items():
        if name == "float":
            continue
        path = out / f"{_slug(name)}.tflite"
        exports[file_name(name)] = exported = convert(model, path, calibration=x)
        proof = integer_only(exported.content)
        if not proof:
            raise RuntimeError(f"{path.name} is not integer-only: {proof}")
    return exports


def _evaluate(
    settings: DemoSettings,
    models: dict[str, Any],
    exports: dict[str, ExportedModel],
    x: np.ndarray,
    y: np.ndarray,
    out: Path,
    progress: bool | None,
) -> RobustnessReport:
    """Attack every model, and every file with the gradients of the model it was made from."""
    return evaluate(
        {**models, **{name: exported.interpreter() for name, exported in exports.items()}},
        x,
        y,
        attacks=list(ATTACKS),
        epsilons=[strength / 255 for strength in settings.epsilons],
        surrogates={file_name(name): m for name, m in models.items() if name != "float"},
        options={"pgd": {"steps": PGD_STEPS}},
        seed=settings.seed,
        results=out / "evaluation",
        progress=progress,
    )


def _plot_amplification(
    settings: DemoSettings,
    models: dict[str, Any],
    x: np.ndarray,
    y: np.ndarray,
    out: Path,
) -> None:
    """Plot how PGD's perturbation grows from layer to layer in each model."""
    moved = {
        name: run_attack(
            "pgd",
            model,
            x,
            y,
            settings.epsilon,
            steps=PGD_STEPS,
            seed=settings.seed,
            early_stop=False,
        ).x_adv
        for name, model in models.items()
    }
    amplification = error_amplification(models, x, {settings.epsilon: moved}, progress=False)
    amplification.plot_depth(out / "plots" / "amplification.png")
    amplification.to_json(out / "amplification.json")


def _sizes(models: dict[str, Any], exports: dict[str, ExportedModel], out: Path) -> dict[str, int]:
    """Return bytes: of a model, the float32 weights of its network; of a file, its size on disk."""
    sizes = dict.fromkeys(models, 4 * models["float"].count_params())
    sizes |= {name: len(exported) for name, exported in exports.items()}
    return sizes


def _speeds(
    models: dict[str, Any], exports: dict[str, ExportedModel], x: np.ndarray
) -> dict[str, float]:
    """Return images/s: the best of a few passes over the test images."""
    predictors: dict[str, Callable[[], Any]] = {}
    for name, model in models.items():
        predictors[name] = partial(model.predict, x, batch_size=64, verbose=0)
    for name, exported in exports.items():
        predictors[name] = partial(exported.interpreter(batch_size=64).predict, x)
    speeds = {}
    for name, predict in predictors.items():
        predict()
        times = []
        for _ in range(5):
            start = time.perf_counter()
            predict()
            times.append(time.perf_counter() - start)
        speeds[name] = len(x) / min(times)
    return speeds


def _sweep(
    settings: DemoSettings,
    dataset: Dataset,
    start: Any,
    result: DemoResult,
    progress: bool | None,
) -> dict[str, dict[int, tuple[Proportion, Proportion]]]:
    """Train VQ and DQ at other activation bits, and attack each with PGD."""
    x, y = scaled(dataset.x_test), dataset.y_test
    forms = ("VQ", DEPLOYED)
    others = [bits for bits in settings.sweep if bits != settings.run.quantization.activation_bits]
    shares: dict[str, dict[int, tuple[Proportion, Proportion]]] = {}
    steps = len(forms) * len(others) * settings.run.training.epochs
    with progress_bar("accuracy against bits", steps, progress) as advance:
        for name in forms:
            robust = result.report.robust(name, settings.epsilon, "pgd")
            shares[name] = {
                settings.run.quantization.activation_bits: (result.report.clean(name), robust)
            }
            for bits in others:
                run = settings.run.changed({"quantization.activation_bits": bits})
                model = _quantized(start, name, run)
                note = f"{name}, {bits} bits"
                _train(
                    model,
                    dataset,
                    settings.run.training,
                    lambda logs: advance(note),  # noqa: B023
                    settings.seed,
                )
                report = evaluate(
                    {note: model},
                    x,
                    y,
                    attacks=["pgd"],
                    epsilons=[settings.epsilon],
                    options={"pgd": {"steps": PGD_STEPS}},
                    seed=settings.seed,
                    progress=False,
                )
                shares[name][bits] = report.clean(note), report.robust(note, settings.epsilon)
    return shares


def _as_dict(result: DemoResult, quantized: list[str]) -> dict[str, Any]:
    """Return everything that ``results.json`` holds; what is measured in seconds stands apart."""
    settings = result.settings

    def share(value: Proportion) -> dict[str, Any]:
        return {"accuracy": value.value, "low": value.low, "high": value.high, "of": value.total}

    return {
        "settings": {
            "run": settings.run.model_dump(mode="json"),
            "epsilons": settings.epsilons,
            "epsilon": settings.epsilon,
            "sweep": settings.sweep,
            "seed": settings.seed,
        },
        "data": {"name": result.dataset.name, "source": result.dataset.source},
        "models": FORMS,
        "robustness": result.report.to_dict(),
        "bits": {
            name: {
                str(bits): {"clean": share(clean), "pgd": share(robust)}
                for bits, (clean, robust) in sorted(by_bits.items())
            }
            for name, by_bits in result.bits.items()
        },
        "sizes": result.sizes,
        "parity": {name: str(exported.parity) for name, exported in result.exports.items()},
        "versions": versions_of(settings.run.training.backend),
        "measured": {"images_per_second": result.speeds, "seconds": result.seconds},
        "quantized": quantized,
    }
