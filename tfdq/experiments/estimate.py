"""What an experiment will cost, from one measured step of each kind of network in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tfdq.data import Dataset
from tfdq.data.steps import steps_per_epoch
from tfdq.experiments.measuring import evaluation_images
from tfdq.experiments.process import TF_KERAS, memory_of
from tfdq.experiments.runner import Experiment, Unit
from tfdq.experiments.settings import RunSettings
from tfdq.experiments.stopwatch import median_seconds
from tfdq.experiments.suite import attack_options, suite_of
from tfdq.robustness import as_target
from tfdq.robustness.attacks import attack_spec
from tfdq.robustness.attacks.losses import cross_entropy

_BATCH = 100
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
        classes = experiment.images(settings).classes
        evaluation = (
            _evaluation_seconds(settings, classes, forward, gradient) if members[0].measured else 0
        )
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
    backend = experiment.recipe.variants[0].settings.training.backend
    return Estimate(tuple(kinds), memory_of(backend), len(units) - len(left))


def _network_key(settings: RunSettings) -> str:
    """Return what the time of a step depends on."""
    parts = [
        settings.data.name,
        settings.data.image_size,
        settings.data.pad,
        settings.model.model_dump(),
        settings.quantized,
        settings.penalty.beta > 0,
        settings.adversarial.attack,
        settings.adversarial.objective,
        settings.adversarial.steps,
        None if settings.adversarial.whole_batch else settings.adversarial.ratio,
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
    attack, objective = settings.adversarial.attack, settings.adversarial.objective
    kind = attack if objective == "adversarial" else f"{objective.upper()}, {attack}"
    adversarial = "" if attack == "none" else f", {kind} training"
    squeezed = ", squeezing" if settings.evaluation.squeezing else ""
    only = "" if unit.measured else ", trained only"
    return f"{settings.model.network} ({form}{penalty}{adversarial}{squeezed}{only})"


def _measure(settings: RunSettings, dataset: Dataset) -> tuple[float, float, float]:
    """Return the seconds of a training step, and of an image's forward pass and its gradient."""
    model, step = _step_of(settings.training.backend)(settings, dataset)
    x, y = evaluation_images(dataset, _BATCH)
    target = as_target(model)
    forward = median_seconds(lambda: target.logits(x)) / len(x)
    gradient = median_seconds(lambda: target.loss_gradient(cross_entropy, x, y)) / len(x)
    return step, forward, gradient


def _step_of(backend: str) -> Callable[[RunSettings, Dataset], tuple[Any, float]]:
    """Return what builds a network for a backend and times a training step of it."""
    if backend == TF_KERAS:
        from tfdq.experiments.tf_keras_step import measured_step

        return measured_step
    from tfdq.experiments.keras3_step import measured_step as of_keras3

    return of_keras3


def _evaluation_seconds(
    settings: RunSettings, classes: int, forward: float, gradient: float
) -> float:
    asked = settings.evaluation

    def attacked(images: int, suite: int, gradient: float) -> float:
        """Return the seconds of the single attacks and of the suite, as if no image broke."""
        single = len(asked.epsilons) * images
        seconds = single * sum(seconds_of(name, gradient) for name in asked.attacks)
        several = len(asked.suite_strengths) * suite
        for names in suite_of(asked):
            seconds += several * sum(seconds_of(name, gradient) for name in names)
        return seconds

    def seconds_of(name: str, gradient: float) -> float:
        spec = attack_spec(name)
        if spec.quantized and not settings.quantized:
            return 0.0
        cost = spec.cost(attack_options(asked, name), classes)
        # Two forward passes more give the clean verdict and the final one.
        return cost.gradients * gradient + (cost.queries + 2) * forward

    files = settings.quantized and asked.export
    seconds = attacked(asked.images, asked.suite_images, gradient)
    if files:
        # Gradients come from the network and every step is shown to the file as well.
        seconds += attacked(asked.images, asked.tflite_images, gradient + forward)
    audit = _AUDIT_GRADIENTS * gradient
    audit += _AUDIT_CHECKS_WITH_QUERIES * asked.audit_queries * forward
    return seconds + asked.audit_images * audit
