"""A complete procedure: every image is proven robust or broken, if time allows.

The inputs of an integer network are integers, so a box of them is finite, and a search that halves
it ends. Intervals come first, then an attack, then linear bounds, then branch and bound on the
input.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from tfdq.certificates.certificate import Certificate, check_graph_examples
from tfdq.certificates.interval_certificate import input_box
from tfdq.certificates.intervals import (
    bound_result,
    check_intervals,
    propagate,
    separated_classes,
)
from tfdq.certificates.linear_bounds import LinearBounds, Range
from tfdq.certificates.record import Record
from tflite_export.files.write import write
from tflite_export.ir.affine import dequantize
from tflite_export.ir.graph import IntegerGraph
from tflite_export.ops.spec import KERNEL_SETS
from tflite_export.runtime.interpreter import Interpreter
from tflite_export.runtime.reference import run

Verdict = Literal["verified", "broken", "unknown"]
Stage = Literal["interval", "attack", "linear", "branching"]
IntegerArray = npt.NDArray[Any]

_ENUMERATED = 64
"""Inputs of a box that are run one by one rather than split further."""

_ATTACK_STEPS = 20
_ATTACKED_CLASSES = 16

_RUNTIME_KERNELS = {"xnnpack": "default", "builtin": "builtin", "reference": "reference"}


@dataclass(frozen=True)
class Decision:
    """What was found out about one image.

    Attributes:
        verdict: ``"verified"``: all inputs in the box have the label as their strict maximum;
            ``"broken"``: one has not; ``"unknown"``: the time was up.
        stage: what decided, or was at work when the time was up.
        boxes: that were bounded.
        seconds: taken.
        counterexample: for ``"broken"``, integers in the type and shape of one input.
    """

    verdict: Verdict
    stage: Stage
    boxes: int
    seconds: float
    counterexample: IntegerArray | None = None


@dataclass(frozen=True, eq=False)
class CompleteCertificate(Certificate):
    """A certificate with what the complete procedure decided about each example.

    Its radius is the radius that was asked for where an example is verified, and 0 elsewhere.

    Attributes:
        decisions: one for each example.
        counterexamples: float32 ``(n, ...)`` in input units: an input in the ball and the bounds
            whose strict
            maximum is not the label, for the broken examples; NaN for all others.
    """

    decisions: tuple[Decision, ...] = ()
    counterexamples: npt.NDArray[np.float32] = field(
        default_factory=lambda: np.zeros(0, np.float32)
    )

    def share(self, verdict: Verdict) -> float:
        """Return the share of the examples with a verdict.

        Raises:
            ValueError: there is no such verdict.
        """
        if verdict not in get_args(Verdict):
            known = ", ".join(get_args(Verdict))
            raise ValueError(f"verdict must be one of {known}, got {verdict!r}")
        return float(np.mean([found.verdict == verdict for found in self.decisions]))

    def summary(self, eps: Any = ()) -> str:
        """Return the certificate as a few lines of text."""
        counts = {
            name: sum(found.verdict == name for found in self.decisions)
            for name in get_args(Verdict)
        }
        seconds = [found.seconds for found in self.decisions]
        stages = {
            stage: sum(f.stage == stage and f.verdict != "unknown" for f in self.decisions)
            for stage in get_args(Stage)
        }
        lines = [
            f"complete verification in linf at {self.details['eps']:.4g}, "
            f"{len(self.decisions)} examples, clean accuracy {self.clean_accuracy:.4f}",
            ", ".join(f"{count} {name}" for name, count in counts.items()),
            "decided by " + ", ".join(f"{stage} {count}" for stage, count in stages.items()),
            f"median {np.median(seconds):.2f} s, longest {max(seconds):.2f} s an example",
        ]
        return "\n".join([*lines, self.note] if self.note else lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the certificate as plain data for JSON."""
        return {
            **super().to_dict(),
            "decisions": [_row(index, found) for index, found in enumerate(self.decisions)],
        }


class CompleteVerifier:
    """Decides whether all inputs in a box of integers are given one class.

    Args:
        graph: an integer graph with one input and one output that has one score for each class.
            A float input must go into ``QUANTIZE`` only.
        kernels: whose arithmetic, a key of `tflite_export.ops.spec.KERNEL_SETS`.
        batch_size: boxes that are bounded at once.

    Raises:
        ValueError: an operator has no interval rule, or an argument is out of its range.
    """

    def __init__(self, graph: IntegerGraph, kernels: str = "xnnpack", batch_size: int = 32) -> None:
        check_intervals(graph)
        if kernels not in KERNEL_SETS:
            raise ValueError(f"kernels is {kernels!r}; known: {', '.join(KERNEL_SETS)}")
        if batch_size != int(batch_size) or batch_size < 1:
            raise ValueError(f"batch_size must be a whole number > 0, got {batch_size}")
        self.graph = integer_part(graph)
        self.kernels = kernels
        self.batch_size = batch_size
        self._linear = LinearBounds(self.graph, kernels)

    def decide(
        self,
        low: IntegerArray,
        high: IntegerArray,
        label: int,
        seconds: float = 60.0,
        example: IntegerArray | None = None,
    ) -> Decision:
        """Decide about one box.

        A tie with another class counts as broken, as everywhere in this package.

        Args:
            low: smallest input, in the shape of one input and the type of `graph`'s.
            high: largest input.
            label: the class.
            seconds: after which the search gives up.
            example: where the attack begins; None: in the middle of the box.
        """
        began = time.monotonic()
        low, high = low[None], high[None]
        classes = np.array([label])
        boxes = 1

        def decided(verdict: Verdict, stage: Stage, point: Any = None) -> Decision:
            return Decision(verdict, stage, boxes, time.monotonic() - began, point)

        bounds = propagate(self.graph, low, high, self.kernels)
        if np.all(separated_classes(self.graph, bounds, classes, self.kernels)):
            return decided("verified", "interval")
        start = (low.astype(np.int64) + high) // 2 if example is None else example[None]
        point = self._attack(low, high, label, start, began + seconds)
        if point is not None:
            return decided("broken", "attack", point)
        known = self._linear.tightened(low, high, began + seconds)
        stack = [(low[0], high[0])]
        stage: Stage = "linear"
        while stack:
            if time.monotonic() - began > seconds:
                return decided("unknown", stage)
            part = [stack.pop() for _ in range(min(self.batch_size, len(stack)))]
            lows, highs = (np.stack(side) for side in zip(*part, strict=True))
            held, slopes, point = self._bound(lows, highs, label, known)
            boxes += len(part)
            if point is not None:
                return decided("broken", stage, point)
            for row in np.flatnonzero(~held):
                if _inputs_in(lows[row], highs[row]) <= _ENUMERATED:
                    point = self._first_broken(_every_input(lows[row], highs[row]), label)
                    if point is not None:
                        return decided("broken", "branching", point)
                else:
                    stack.extend(_halves(lows[row], highs[row], slopes[row]))
            if stack:
                stage = "branching"
        return decided("verified", stage)

    def _bound(
        self, low: IntegerArray, high: IntegerArray, label: int, known: dict[int, Range]
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64], IntegerArray | None]:
        """Bound some boxes, and run the input of each that its linear bound is least at.

        Returns:
            Which are verified, the slope of the worst difference in each, and a broken input if
            one was found.
        """
        classes = np.full(len(low), label)
        relaxation = self._linear.relax(low, high, known)
        apart = separated_classes(self.graph, relaxation.bounds, classes, self.kernels)
        slope = np.zeros((len(low), int(np.prod(low.shape[1:]))))
        if self._linear.reaches_logits:
            margins = self._linear.margins(relaxation, classes, ~apart)
            apart |= margins.least > 0
            slope = margins.slope
        falls = slope.reshape(low.shape) > 0
        held = np.all(apart, axis=1)
        corners = np.where(falls, low, high)[~held]
        return held, slope, self._first_broken(corners, label)

    def outputs(self, points: IntegerArray) -> IntegerArray:
        """Return the output's integers (or floats) for inputs on the grid of `graph`."""
        values = run(self.graph, [points], self.kernels)[self.graph.outputs[0]]
        return values.reshape(len(points), -1)

    def _first_broken(self, points: IntegerArray, label: int) -> IntegerArray | None:
        """Return the first input whose strict maximum is not the label."""
        if not len(points):
            return None
        broken = np.flatnonzero(~strictly_first(self.outputs(points), label))
        return points[broken[0]] if len(broken) else None

    def _attack(
        self,
        low: IntegerArray,
        high: IntegerArray,
        label: int,
        start: IntegerArray,
        deadline: float,
    ) -> IntegerArray | None:
        """Search a box by gradient steps towards each other class, from an input and a corner.

        Steps have the gradient's sign and begin with a quarter of the box; the last ones are of one
        integer.
        """
        wide_low, wide_high = low.astype(np.int64), high.astype(np.int64)
        found = self._first_broken(start.astype(low.dtype), label)
        # The classes that come closest.
        ranked = np.argsort(-self.outputs(start.astype(low.dtype))[0].astype(np.float64))
        others = np.sort(ranked[ranked != label][:_ATTACKED_CLASSES])
        if found is not None or not self._linear.reaches_logits or not len(others):
            return found
        rng = np.random.default_rng(0)
        corner = np.where(rng.random(low.shape) < 0.5, wide_low, wide_high)
        points = np.repeat(np.concatenate([start, corner]), len(others), axis=0)
        targets = np.tile(others, len(points) // len(others))
        classes = np.full(len(targets), label)
        width = wide_high - wide_low
        for step in range(_ATTACK_STEPS):
            if time.monotonic() > deadline:
                return None
            there = points.astype(low.dtype)
            slope, outputs = self._linear.gradient(there, classes, targets)
            broken = np.flatnonzero(~strictly_first(outputs, label))
            if len(broken):
                return there[broken[0]]
            left = 1 - step / _ATTACK_STEPS
            reach = np.maximum(1, np.rint(width * left / 2).astype(np.int64))
            moves = np.sign(slope).astype(np.int64).reshape(points.shape) * reach
            points = np.clip(points - moves, wide_low, wide_high)
        return self._first_broken(points.astype(low.dtype), label)


def strictly_first(outputs: IntegerArray, label: int) -> npt.NDArray[np.bool_]:
    """Tell for which rows of outputs a class is the strict maximum."""
    others = np.delete(outputs, label, axis=1)
    return np.all(outputs[:, [label]] > others, axis=1)


def integer_part(graph: IntegerGraph) -> IntegerGraph:
    """Return a graph without the ``QUANTIZE`` of a float input: its input is integers.

    Raises:
        ValueError: a float input goes elsewhere, too.
    """
    if graph.tensors[graph.inputs[0]].dtype != "float32":
        return graph
    readers = [operator for operator in graph.operators if graph.inputs[0] in operator.inputs]
    if [operator.kind for operator in readers] != ["QUANTIZE"]:
        name = graph.tensors[graph.inputs[0]].name
        raise ValueError(
            f"the float input {name!r} goes into {', '.join(o.kind for o in readers)}; the inputs "
            "of a complete search are integers, so it may go into one QUANTIZE only"
        )
    operators = [operator for operator in graph.operators if operator is not readers[0]]
    return replace(graph, operators=operators, inputs=readers[0].outputs)


def complete_certificate(
    graph: IntegerGraph,
    x: Any,
    y: Any,
    eps: float = 1 / 255,
    seconds: float = 60.0,
    bounds: tuple[float, float] = (0.0, 1.0),
    kernels: str = "xnnpack",
    batch_size: int = 32,
    resume: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CompleteCertificate:
    """Decide for each example whether any input within a radius is not given its label.

    Each example is bounded by intervals, attacked, bounded by linear functions, and then searched:
    the box of inputs is halved where the worst difference of logits changes most, until every part
    is verified, an input is broken, or the time is up. Sound and, without a limit of time,
    complete. A misclassified example is broken. Every broken input is run by LiteRT
    where it has the kernels of ``kernels``.

    Args:
        graph: the integer graph of a file or of a trained model, one input and one output.
        x: float examples ``(n, ...)``, on the scale of the training data.
        y: integer labels ``(n,)``.
        eps: radius in L_inf and input units, > 0.
        seconds: for each example, > 0.
        bounds: smallest and largest valid input.
        kernels: whose arithmetic, a key of `tflite_export.ops.spec.KERNEL_SETS`.
        batch_size: boxes at a time.
        resume: a JSON-lines file that every finished example is appended to, and that a later
            call with the same arguments continues from. Examples that it left unknown are tried
            again if there is more time for them now.
        progress: called with the examples done and in all.

    Raises:
        ValueError: an operator has no interval rule, an argument is out of its range, ``resume``
            holds another run, or LiteRT computes other integers than ``kernels``.
    """
    if not 0 < eps < np.inf or not 0 < seconds < np.inf:
        raise ValueError(f"eps and seconds must be positive and finite, got {eps} and {seconds}")
    if len(bounds) != 2 or not bounds[0] < bounds[1]:
        raise ValueError(f"bounds must be (low, high) with low < high, got {bounds}")
    verifier = CompleteVerifier(graph, kernels, batch_size)
    images, labels = check_graph_examples(graph, x, y)
    replay = _Replay(graph, verifier)
    content = hashlib.sha256(write(graph)).hexdigest()
    settings = {
        "eps": float(eps),
        "bounds": [float(end) for end in bounds],
        "kernels": kernels,
        "model": content,
        "labels": hashlib.sha256(labels.astype("<i8").tobytes()).hexdigest(),
    }
    fields = (*Decision.__dataclass_fields__, "budget")
    record = Record(resume, "complete verification", settings, images, fields)
    decisions = []
    for index, image in enumerate(images):
        low, high = _integer_box(graph, verifier, image[None], eps, bounds)
        row = record.results.get(index)
        if row is None or (row["verdict"] == "unknown" and row["budget"] < seconds):
            example = _integer_box(graph, verifier, image[None], 0.0, bounds)[0][0]
            found = verifier.decide(low[0], high[0], int(labels[index]), seconds, example)
            replay(found, int(labels[index]), index)
            row = {**_row(index, found), "budget": seconds}
            record.add(row)
        decisions.append(_decision(row, low[0]))
        if progress is not None:
            progress(index + 1, len(images))
    record.close()
    return _certificate(graph, verifier, images, labels, decisions, settings | {"seconds": seconds})


def _certificate(
    graph: IntegerGraph,
    verifier: CompleteVerifier,
    images: npt.NDArray[np.float32],
    labels: npt.NDArray[np.intp],
    decisions: list[Decision],
    settings: dict[str, Any],
) -> CompleteCertificate:
    eps, bounds = settings["eps"], settings["bounds"]
    verified = np.array([found.verdict == "verified" for found in decisions])
    points = np.concatenate(
        [_integer_box(graph, verifier, image[None], 0.0, bounds)[0] for image in images]
    )
    correct = np.argmax(verifier.outputs(points), axis=1) == labels
    broken = np.full(images.shape, np.nan, np.float32)
    tensor = verifier.graph.tensors[verifier.graph.inputs[0]]
    for index, found in enumerate(decisions):
        if found.counterexample is not None:
            image = images[index]
            real = dequantize(found.counterexample, tensor)
            lowest = np.minimum(image, np.maximum(image - np.float32(eps), bounds[0]))
            highest = np.maximum(image, np.minimum(image + np.float32(eps), bounds[1]))
            broken[index] = np.clip(real, lowest, highest)
    note = ""
    if not verified.any():
        note = f"Nothing is verified at {eps:.4g}. Train with IntervalTraining, or take more time."
    return CompleteCertificate(
        np.where(verified, eps, 0.0),
        correct,
        np.zeros(len(images), bool),
        "linf",
        "complete",
        1.0,
        note,
        settings,
        tuple(decisions),
        broken,
    )


def _integer_box(
    graph: IntegerGraph,
    verifier: CompleteVerifier,
    image: npt.NDArray[np.float32],
    eps: float,
    bounds: Any,
) -> tuple[IntegerArray, IntegerArray]:
    """Return the box of the integers that a graph's own arithmetic begins with."""
    low, high = input_box(graph, image, eps, (bounds[0], bounds[1]))
    if verifier.graph is graph:
        return low, high
    (index,) = verifier.graph.inputs
    operator = next(o for o in graph.operators if index in o.outputs)
    ends = {graph.inputs[0]: (low, high)}
    return bound_result(graph, operator, ends, verifier.kernels, index)


class _Replay:
    """Runs broken inputs on LiteRT."""

    def __init__(self, graph: IntegerGraph, verifier: CompleteVerifier) -> None:
        self._verifier = verifier
        self._float = verifier.graph is not graph
        self._interpreter: Interpreter | None = None
        if verifier.kernels in _RUNTIME_KERNELS:
            runtime = Interpreter(
                write(graph), kernels=_RUNTIME_KERNELS[verifier.kernels], graph=graph
            )
            if runtime.kernel_set == verifier.kernels:
                self._interpreter = runtime

    def __call__(self, found: Decision, label: int, index: int) -> None:
        """Compare LiteRT's output for a counterexample with the one that was computed.

        Raises:
            ValueError: it differs, or the label is LiteRT's strict maximum.
        """
        if found.counterexample is None or self._interpreter is None:
            return
        point = found.counterexample[None]
        tensor = self._verifier.graph.tensors[self._verifier.graph.inputs[0]]
        feed = dequantize(point, tensor) if self._float else point
        outputs = self._interpreter.invoke([feed])[0].reshape(1, -1)
        if strictly_first(outputs, label)[0]:
            raise ValueError(
                f"{self._interpreter.runtime} gives example {index}'s counterexample its label, "
                f"the kernel set {self._verifier.kernels!r} does not: this machine computes in "
                "another way; `python -m tflite_export selftest` says where"
            )


def _row(index: int, found: Decision) -> dict[str, Any]:
    point = found.counterexample
    return {
        "index": index,
        "verdict": found.verdict,
        "stage": found.stage,
        "boxes": found.boxes,
        "seconds": round(found.seconds, 4),
        "counterexample": None if point is None else point.ravel().tolist(),
    }


def _decision(row: dict[str, Any], like: IntegerArray) -> Decision:
    point = row["counterexample"]
    return Decision(
        row["verdict"],
        row["stage"],
        row["boxes"],
        row["seconds"],
        None if point is None else np.array(point, like.dtype).reshape(like.shape),
    )


def _inputs_in(low: IntegerArray, high: IntegerArray) -> float:
    """Return how many inputs a box has, infinity for more than a float holds."""
    with np.errstate(over="ignore"):
        return float(np.prod(high.astype(np.float64) - low + 1))


def _every_input(low: IntegerArray, high: IntegerArray) -> IntegerArray:
    """Return all inputs of a small box, ``(n, ...)``."""
    sides = [np.arange(int(a), int(b) + 1) for a, b in zip(low.ravel(), high.ravel(), strict=True)]
    points = low.ravel()[None].astype(np.int64)
    for place, side in enumerate(sides):
        if len(side) > 1:
            points = np.repeat(points, len(side), axis=0)
            points[:, place] = np.tile(side, len(points) // len(side))
    return points.reshape(-1, *low.shape).astype(low.dtype)


def _halves(
    low: IntegerArray, high: IntegerArray, slope: npt.NDArray[np.float64]
) -> list[tuple[IntegerArray, IntegerArray]]:
    """Split a box in two across the input that moves the worst difference most."""
    wide_low, wide_high = low.ravel().astype(np.int64), high.ravel().astype(np.int64)
    width = wide_high - wide_low
    # Without a slope the widest side is split.
    axis = int(np.argmax(np.abs(slope) * width + 1e-9 * width))
    middle = (wide_low[axis] + wide_high[axis]) // 2
    below, above = high.ravel().copy(), low.ravel().copy()
    below[axis], above[axis] = middle, middle + 1
    return [(low, below.reshape(low.shape)), (above.reshape(low.shape), high)]
