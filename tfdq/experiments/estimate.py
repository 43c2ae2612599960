"""What an experiment will cost, from one measured step of each kind of network in it."""

from __future__ import annotations

import json
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf
import tf_keras

from tfdq.data import Dataset, pipeline, steps_per_epoch
from tfdq.experiments.measuring import evaluation_images
from tfdq.experiments.networks import build
from tfdq.experiments.resumable import precision, training_settings, wrapped
from tfdq.experiments.runner import Experiment, Unit
from tfdq.experiments.settings import EvaluationSettings, RunSettings, suite_attacks
from tfdq.experiments.training import compile_for
from tfdq.robustness import as_target, run_attack

_BATCH = 100
_STEPS = 3
# Gradients and forward passes on an image that no attack breaks, at the attacks' default settings.
_GRADIENTS = {"fgsm": 1, "r+fgsm": 1, "apgd-ce": 101, "low-bit": 606}
_GRADIENTS_A_CLASS = {"apgd-t": 101, "fab": 200}
_QUERIES = {"low-bit": 2000}
_AUDIT_GRADIENTS = 1500
_AUDIT_CHECKS_WITH_QUERIES = 2


@dataclass(frozen=True)
class Kind:
    """Units that cost the same.

    Attributes:
        title: what they are.
        units: how many of them are still to be done.
        step_seconds: one training step, measured.
        training_seconds: a whole training, estimated.
        evaluation_seconds: a whole evaluation, estimated: an upper bound, as if no attack broke an
            image; attacks that break them early take a fraction of it.
    """

    title: str
    units: int
    step_seconds: float
    training_seconds: float
    evaluation_seconds: float


@dataclass(frozen=True)
class Estimate:
    """The cost of what is left of an experiment, on this machine with nothing else running.

    Attributes:
        kinds: of units.
        memory_bytes: largest use of memory of this process so far, that of one step included; of
            the first GPU where there is one.
        done: units that are finished already.
    """

    kinds: tuple[Kind, ...]
    memory_bytes: int
    done: int

    @property
    def training_seconds(self) -> float:
        """Of all trainings."""
        return sum(kind.units * kind.training_seconds for kind in self.kinds)

    @property
    def evaluation_seconds(self) -> float:
        """Of all evaluations; an upper bound."""
        return sum(kind.units * kind.evaluation_seconds for kind in self.kinds)

    def to_dict(self) -> dict[str, Any]:
        """Return the estimate as plain data."""
        totals = {
            "training_seconds": self.training_seconds,
            "evaluation_seconds_at_most": self.evaluation_seconds,
        }
        return {**asdict(self), **totals}

    def __str__(self) -> str:
        """Return a table."""
        lines = [
            f"{kind.units} x {kind.title}: step {1e3 * kind.step_seconds:.0f} ms (measured), "
            f"training {_duration(kind.training_seconds)}, evaluation at most "
            f"{_duration(kind.evaluation_seconds)}"
            for kind in self.kinds
        ]
        lines.append(
            f"In all about {_duration(self.training_seconds)} of training and at most "
            f"{_duration(self.evaluation_seconds)} of evaluation in one process (an estimate); "
            f"memory {self.memory_bytes / 2**30:.1f} GiB; {self.done} units are done already."
        )
        return "\n".join(lines)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def estimate(experiment: Experiment) -> Estimate:
    """Measure one training step and one attacked batch of each kind of network.

    Nothing is written but the experiment's folder.
    """
    units = experiment.units()
    left = experiment.pending()
    groups: dict[str, list[Unit]] = {}
    for unit in left:
        groups.setdefault(_cost_key(unit), []).append(unit)
    measured: dict[str, tuple[float, float, float]] = {}
    kinds = []
    counted: set[Path] = set()
    for members in groups.values():
        settings = members[0].variant.settings
        key = _network_key(settings)
        if key not in measured:
            measured[key] = _measure(settings, experiment.images(settings))
        step, forward, gradient = measured[key]
        steps = steps_per_epoch(experiment.images(settings), settings.training.batch_size)
        evaluation = _evaluation_seconds(settings, forward, gradient) if members[0].measured else 0
        # Units may share a trained network: it is counted with the first of them.
        new = {unit.folder(experiment.out) for unit in members} - counted
        counted |= new
        share = len(new) / len(members)
        kinds.append(
            Kind(
                _title(members[0]),
                len(members),
                step,
                share * step * steps * settings.training.epochs,
                evaluation,
            )
        )
    return Estimate(tuple(kinds), _memory(), len(units) - len(left))


def _network_key(settings: RunSettings) -> str:
    """Return what the time of a step depends on."""
    parts = [
        settings.data.name,
        settings.data.pad,
        settings.model.model_dump(),
        settings.quantized,
        settings.penalty.beta > 0,
        settings.adversarial.attack,
        settings.training.batch_size,
        settings.training.precision,
    ]
    return json.dumps(parts, default=str)


def _cost_key(unit: Unit) -> str:
    settings = unit.variant.settings
    training = settings.training.epochs, settings.data.train_images
    evaluation = settings.evaluation.model_dump_json() if unit.measured else ""
    return json.dumps([_network_key(settings), training, evaluation])


def _title(unit: Unit) -> str:
    settings = unit.variant.settings
    form = "float" if not settings.quantized else "quantized"
    penalty = ", penalty" if settings.penalty.beta > 0 else ""
    attack = settings.adversarial.attack
    adversarial = "" if attack == "none" else f", {attack} training"
    squeezed = ", squeezing" if settings.evaluation.squeezing else ""
    only = "" if unit.measured else ", trained only"
    return f"{settings.model.name} ({form}{penalty}{adversarial}{squeezed}{only})"


def _measure(settings: RunSettings, dataset: Dataset) -> tuple[float, float, float]:
    """Return the seconds of a training step, and of an image's forward pass and its gradient."""
    tf_keras.backend.clear_session()
    with precision(settings.training.precision):
        model = build(settings, dataset)
        fitted = wrapped(model, settings, seed=0)
        compile_for(fitted, training_settings(settings, 0), 1)
    batches = iter(pipeline(dataset, settings.training.batch_size, settings.training.augment))
    train = fitted.make_train_function()
    step = _seconds(lambda: train(batches)["loss"].numpy())
    x, y = evaluation_images(dataset, _BATCH)
    target = as_target(model)
    forward = _seconds(lambda: target.logits(x)) / len(x)
    attacked = _seconds(lambda: run_attack("fgsm", target, x, y, 1 / 255, early_stop=False))
    # FGSM takes one gradient and two forward passes.
    return step, forward, max(attacked / len(x) - 2 * forward, forward)


def _seconds(work: Callable[[], Any]) -> float:
    """Return the median time of a call, after one that traces."""
    work()
    times = []
    for _ in range(_STEPS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _evaluation_seconds(settings: RunSettings, forward: float, gradient: float) -> float:
    asked = settings.evaluation
    files = settings.quantized and asked.export
    seconds = _attack_seconds(asked, asked.images, forward, gradient, asked.suite_images)
    if files:
        # Gradients come from the network and every step is shown to the file as well.
        both = gradient + forward
        seconds += _attack_seconds(asked, asked.images, forward, both, asked.tflite_images)
    audit = _AUDIT_GRADIENTS * gradient
    audit += _AUDIT_CHECKS_WITH_QUERIES * asked.audit_queries * forward
    return seconds + asked.audit_images * audit


def _attack_seconds(
    asked: EvaluationSettings, images: int, forward: float, gradient: float, suite: int
) -> float:
    """Return the seconds of the single attacks and of the suite, as if no image broke."""
    single = sum(_GRADIENTS.get(name, asked.pgd_steps) for name in asked.attacks)
    seconds = len(asked.epsilons) * images * (single * gradient + 2 * forward)
    if asked.suite != "none":
        names = suite_attacks(asked.suite)
        gradients = sum(
            _GRADIENTS.get(name, 0) + asked.target_classes * _GRADIENTS_A_CLASS.get(name, 0)
            for name in names
        )
        queries = asked.square_queries + sum(_QUERIES.get(name, 0) for name in names)
        cost = gradients * gradient + queries * forward
        seconds += len(asked.suite_strengths) * suite * cost
    return seconds


def _memory() -> int:
    """Return the largest memory in use so far: of the first GPU, or of the process, in bytes."""
    if tf.config.list_physical_devices("GPU"):
        return int(tf.config.experimental.get_memory_info("GPU:0")["peak"])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
