"""Certified L_inf radii of an integer network, by interval bounds on its own arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from tfdq.certificates.certificate import Certificate, check_graph_examples
from tfdq.certificates.intervals import check_intervals, propagate, robust_classes
from tflite_export.ir.affine import quantize
from tflite_export.ir.graph import DTYPES, IntegerGraph
from tflite_export.ops.spec import KERNEL_SETS


def input_box(
    graph: IntegerGraph,
    x: npt.NDArray[np.float32],
    eps: npt.NDArray[np.float64] | float,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> tuple[npt.NDArray, npt.NDArray]:
    """Return the box of a graph's inputs that an L_inf ball around each example covers.

    The ball is cut to ``bounds``. Quantization is monotone: the integers of the ball's ends are
    the ends of the box.

    Args:
        graph: the integer graph.
        x: float32 ``(n, ...)``.
        eps: radius of the ball in input units, one for all or ``(n,)``.
        bounds: smallest and largest valid input.

    Returns:
        Smallest and largest inputs, in the type of the graph's input.
    """
    tensor = graph.tensors[graph.inputs[0]]
    radius = np.asarray(eps, np.float64).reshape(-1, *[1] * (x.ndim - 1))
    ends = []
    for sign in (-1.0, 1.0):
        exact = np.clip(x + sign * radius, *bounds)
        # An example outside the bounds is still inside its own ball.
        exact = np.minimum(exact, x) if sign < 0 else np.maximum(exact, x)
        end = exact.astype(np.float32)
        outwards = np.nextafter(end, np.float32(sign * np.inf))
        end = np.where(sign * end < sign * exact, outwards, end)
        ends.append(end if tensor.dtype == "float32" else quantize(end, tensor))
    kind = DTYPES[tensor.dtype]
    return ends[0].astype(kind), ends[1].astype(kind)


def certify_box(
    graph: IntegerGraph,
    x: npt.NDArray[np.float32],
    classes: npt.NDArray[np.intp],
    eps: npt.NDArray[np.float64] | float,
    bounds: tuple[float, float] = (0.0, 1.0),
    kernels: str = "xnnpack",
) -> npt.NDArray[np.bool_]:
    """Tell for which examples no input within ``eps`` is given another class.

    Returns:
        bool ``(n,)``.
    """
    low, high = input_box(graph, x, eps, bounds)
    return robust_classes(graph, propagate(graph, low, high, kernels), classes, kernels)


def interval_certificate(
    graph: IntegerGraph,
    x: Any,
    y: Any,
    step: float = 1 / 255,
    max_steps: int = 8,
    bounds: tuple[float, float] = (0.0, 1.0),
    kernels: str = "xnnpack",
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Certificate:
    """Certify an integer network in L_inf, for the bits that ship.

    The radius of an example is the largest multiple of ``step`` up to ``max_steps`` of them at
    which the interval bounds prove the predicted class, found by bisection. It is a proof about
    the integer arithmetic itself; no floating-point slack is left. The bounds lose tightness with
    depth, so a network that was not trained for them (`tfdq.certificates.IntervalTraining`)
    commonly has radius 0.

    Args:
        graph: the integer graph of a file or of a trained model, one input and one output.
        x: float examples ``(n, ...)``, on the scale of the training data.
        y: integer labels ``(n,)``.
        step: grid of the radii in input units; ``1/255`` is one step of an 8-bit image.
        max_steps: largest radius in steps, >= 1.
        bounds: smallest and largest valid input.
        kernels: whose arithmetic, a key of `tflite_export.ops.spec.KERNEL_SETS`.
        batch_size: examples at a time.
        progress: called with the batches done and in all.

    Raises:
        ValueError: an operator has no interval rule, or an argument is out of its range.
    """
    check_intervals(graph)
    images, labels = check_graph_examples(graph, x, y)
    if kernels not in KERNEL_SETS:
        raise ValueError(f"kernels is {kernels!r}; known: {', '.join(KERNEL_SETS)}")
    if not step > 0 or max_steps < 1 or batch_size < 1:
        raise ValueError(
            "step, max_steps and batch_size must be positive, got "
            f"{step}, {max_steps} and {batch_size}"
        )
    if not bounds[0] < bounds[1]:
        raise ValueError(f"bounds must be (low, high) with low < high, got {bounds}")
    radius = np.zeros(len(images))
    correct = np.zeros(len(images), bool)
    batches = range(0, len(images), batch_size)
    for done, begin in enumerate(batches):
        part = slice(begin, begin + batch_size)
        predicted = predict_classes(graph, images[part], kernels)
        correct[part] = predicted == labels[part]
        radius[part] = step * _bisect(
            graph, images[part], predicted, step, max_steps, bounds, kernels
        )
        if progress is not None:
            progress(done + 1, len(batches))
    note = ""
    if not np.any(correct & (radius > 0)):
        note = (
            f"Vacuous: the interval bounds prove nothing at {step:.4g}. Train with "
            "IntervalTraining, or use norm='l2' with smoothing."
        )
    details = {"step": step, "max_steps": max_steps, "bounds": list(bounds), "kernels": kernels}
    return Certificate(
        radius, correct, np.zeros(len(images), bool), "linf", "interval", 1.0, note, details
    )


def predict_classes(
    graph: IntegerGraph, x: npt.NDArray[np.float32], kernels: str = "xnnpack"
) -> npt.NDArray[np.intp]:
    """Return the class that the integer network gives each example, the first of equals."""
    values = propagate(graph, *input_box(graph, x, 0.0, (-np.inf, np.inf)), kernels).values
    outputs = values[graph.outputs[0]][0]
    return np.argmax(outputs.reshape(len(x), -1), axis=1)


def _bisect(
    graph: IntegerGraph,
    x: npt.NDArray[np.float32],
    classes: npt.NDArray[np.intp],
    step: float,
    max_steps: int,
    bounds: tuple[float, float],
    kernels: str,
) -> npt.NDArray[np.float64]:
    """Return the largest certified number of steps for each example; boxes are nested."""
    proven = np.zeros(len(x), np.int64)
    failed = np.full(len(x), max_steps + 1)
    while True:
        open_ = np.flatnonzero(failed - proven > 1)
        if len(open_) == 0:
            return proven.astype(np.float64)
        middle = (proven[open_] + failed[open_]) // 2
        held = certify_box(graph, x[open_], classes[open_], middle * step, bounds, kernels)
        proven[open_[held]] = middle[held]
        failed[open_[~held]] = middle[~held]
