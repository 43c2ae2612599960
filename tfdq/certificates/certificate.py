"""The result of a certification: a radius for each example, and what it says of a model."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tflite_export.ir.graph import IntegerGraph
from tflite_export.runtime.input_check import check_inputs

Norm = Literal["l2", "linf"]


@dataclass(frozen=True, eq=False)
class Certificate:
    """Certified radii of a classifier on labelled examples.

    Attributes:
        radius: float64 ``(n,)``: no input closer than this to the example, in ``norm`` and in
            input units, changes the prediction; 0 where nothing is certified. For ``"interval"``
            and ``"complete"`` the distance itself is included.
        correct: bool ``(n,)``: the example is classified as its label.
        abstained: bool ``(n,)``: the classifier declined to answer (smoothing only).
        norm: ``"l2"`` or ``"linf"``.
        method: ``"lipschitz"``, ``"interval"``, ``"complete"`` or ``"smoothing"``.
        confidence: probability that a radius holds: 1.0 for a proof, ``1 - alpha`` for smoothing.
        note: what a reader must know, such as that the certificate is vacuous.
        details: settings and intermediate figures.
    """

    radius: npt.NDArray[np.float64]
    correct: npt.NDArray[np.bool_]
    abstained: npt.NDArray[np.bool_]
    norm: Norm
    method: str
    confidence: float
    note: str
    details: dict[str, Any]

    @property
    def clean_accuracy(self) -> float:
        """Share of the examples that are classified as their label."""
        return float(np.mean(self.correct))

    @property
    def vacuous(self) -> bool:
        """Whether no correctly classified example has a radius above 0."""
        return not bool(np.any(self.correct & (self.radius > 0)))

    def certified_accuracy(self, eps: float) -> float:
        """Return the share of examples that are correct and certified at a distance.

        A radius that was computed in floating point is counted down to one part in 10^9.

        Raises:
            ValueError: ``eps`` is negative.
        """
        if not eps >= 0:
            raise ValueError(f"eps must be >= 0, got {eps}")
        return float(np.mean(self.correct & (self.radius >= eps * (1 - 1e-9))))

    def curve(self, eps: Sequence[float]) -> npt.NDArray[np.float64]:
        """Return the certified accuracy at each distance, float64 ``(len(eps),)``."""
        return np.array([self.certified_accuracy(value) for value in eps])

    def summary(self, eps: Sequence[float] = ()) -> str:
        """Return the certificate as a few lines of text."""
        held = self.radius[self.correct]
        lines = [
            f"{self.method} certificate in {self.norm}, {len(self.radius)} examples, "
            f"clean accuracy {self.clean_accuracy:.4f}",
            f"median radius of the correct ones {np.median(held) if len(held) else 0.0:.4g}",
            *(f"certified at {value:.4g}: {self.certified_accuracy(value):.4f}" for value in eps),
        ]
        return "\n".join([*lines, self.note] if self.note else lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the certificate as plain data for JSON."""
        return {
            "norm": self.norm,
            "method": self.method,
            "confidence": self.confidence,
            "clean_accuracy": self.clean_accuracy,
            "vacuous": self.vacuous,
            "note": self.note,
            "radius": self.radius.tolist(),
            "correct": self.correct.tolist(),
            "abstained": self.abstained.tolist(),
            "details": self.details,
        }

    def save(self, path: str | Path) -> None:
        """Write the certificate to a JSON file."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")


def check_graph_examples(
    graph: IntegerGraph, x: Any, y: Any
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.intp]]:
    """Return images and labels for an integer network, as `Interpreter.predict` would take them.

    Raises:
        ValueError: as `check_examples`; and images of another shape or on another scale than the
            network's input, an output that is not one score for each class, or a label beyond it.
    """
    images, labels = check_examples(x, y)
    check_inputs(images, graph)
    shape = graph.tensors[graph.outputs[0]].shape
    if math.prod(shape[1:]) != shape[-1] or len(shape) < 2:
        raise ValueError(
            f"output {graph.tensors[graph.outputs[0]].name!r} has shape {shape}; a classifier with "
            "one score for each class is certified"
        )
    if shape[-1] == 1:
        raise ValueError(
            f"output {graph.tensors[graph.outputs[0]].name!r} is one score for two classes; a "
            "classifier with one score for each class is certified: train it with two outputs"
        )
    check_label_range(labels, shape[-1])
    return images, labels


def check_label_range(labels: npt.NDArray[np.intp], classes: int) -> None:
    """Say whether every label is one of the classes.

    Raises:
        ValueError: naming the largest label and the number of classes.
    """
    if labels.max() >= classes:
        raise ValueError(
            f"label {labels.max()} is beyond the network's {classes} classes 0..{classes - 1}"
        )


def check_examples(x: Any, y: Any) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.intp]]:
    """Return images as float32 and labels as integers.

    Raises:
        ValueError: they are empty, of different lengths, not finite, or the labels are not one
            integer for each example.
    """
    images, labels = np.asarray(x), np.asarray(y)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if images.ndim < 2 or len(images) == 0 or labels.shape != (len(images),):
        raise ValueError(
            f"x must be a batch of inputs and y one label for each, got shapes {images.shape} "
            f"and {labels.shape}"
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        found = labels.min() if np.issubdtype(labels.dtype, np.integer) else labels.dtype
        raise ValueError(f"labels must be integers >= 0, got {found}")
    images = images.astype(np.float32)
    if not np.all(np.isfinite(images)):
        raise ValueError("x has infinite or NaN entries")
    return images, labels.astype(np.intp)
