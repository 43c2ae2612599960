"""One call for all certificates: choose by norm, by what the model is, or by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from tfdq._extras import explained
from tfdq.certificates.certificate import Certificate, Norm, check_examples
from tfdq.certificates.complete import complete_certificate
from tfdq.certificates.interval_certificate import interval_certificate
from tfdq.certificates.smoothing import Predict, SmoothingSettings, randomized_smoothing
from tfdq.either_keras import is_quantized
from tfdq.which_keras import is_keras3_model, is_tf_keras_model
from tflite_export.files.cost import samples_at_once
from tflite_export.ir.decision import without_decision
from tflite_export.ir.graph import IntegerGraph
from tflite_export.ir.limits import DEFAULT, UNLIMITED, Limits
from tflite_export.runtime.input_check import check_sizes

_BYTES = 16
"""Bytes that a proof holds for one byte of an activation: 64-bit integers, two ends of a box."""

Method = Literal["lipschitz", "interval", "complete", "smoothing"]


def certify(
    model: Any,
    x: Any,
    y: Any,
    norm: Norm = "l2",
    method: Method | None = None,
    *,
    smoothing: SmoothingSettings | None = None,
    step: float = 1 / 255,
    max_steps: int = 8,
    eps: float = 1 / 255,
    seconds: float = 60.0,
    bounds: tuple[float, float] = (0.0, 1.0),
    kernels: str = "xnnpack",
    batch_size: int = 64,
    resume: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    limits: Limits = DEFAULT,
) -> Certificate:
    """Certify that no small change of an input changes the prediction.

    ==============  ========  ==========================================================
    ``method``      ``norm``  what it says
    ==============  ========  ==========================================================
    ``interval``    linf      a proof for the deployed integers, every bit of them; for a
                              ``.tflite`` file or a quantized model
    ``complete``    linf      the same at one radius, with an attack and a search: verified,
                              broken (by which input) or, when the time is up, unknown
    ``lipschitz``   both      a proof from the network's norm and its margins; for a float
                              network, and for a quantized one with its rounding (which
                              commonly makes it vacuous, and then the note says so)
    ``smoothing``   l2        for any classifier that votes over noisy copies of its input,
                              with probability ``1 - alpha``
    ==============  ========  ==========================================================

    Args:
        model: a tf_keras model, float or quantized; a ``.tflite`` file (path or bytes), an
            exported model or an `IntegerGraph`; for smoothing also any function from float32
            ``(n, ...)`` to scores or labels.
        x: examples ``(n, ...)``, on the scale of the training data.
        y: integer labels ``(n,)``.
        norm: ``"l2"`` or ``"linf"``, of the radius.
        method: None: ``"interval"`` for linf of a quantized network, else ``"lipschitz"``.
        smoothing: noise, sample counts and confidence of smoothing.
        step: of the interval radii, in input units.
        max_steps: largest interval radius, in steps.
        eps: radius that ``"complete"`` decides about, in input units.
        seconds: that ``"complete"`` may take for each example.
        bounds: smallest and largest valid input, for intervals and the complete procedure.
        kernels: whose integer arithmetic (`tflite_export.ops.spec.KERNEL_SETS`).
        batch_size: examples at a time; fewer where they would not fit into memory.
        resume: file that smoothing and the complete procedure continue from.
        progress: called with what is done and all that is to do; not by ``"lipschitz"``.
        limits: what a ``.tflite`` file may cost; an exported model is not limited.

    Returns:
        A radius for each example, and what is correct: see `Certificate`; of ``"complete"`` a
        `CompleteCertificate`.

    Raises:
        ValueError: the combination is impossible, an argument is out of its range, or a file costs
            more than its limits.

    Example:
        >>> certify("model.tflite", x, y, norm="linf").certified_accuracy(1 / 255)
    """
    if norm not in get_args(Norm):
        raise ValueError(f"norm must be 'l2' or 'linf', got {norm!r}")
    if method is None:
        quantized = not is_tf_keras_model(model) or is_quantized(model)
        method = "interval" if norm == "linf" and quantized else "lipschitz"
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}")
    if method == "smoothing":
        if norm != "l2":
            raise ValueError("randomized smoothing with Gaussian noise certifies norm='l2' only")
        return randomized_smoothing(_as_function(model, limits), x, y, smoothing, resume, progress)
    if method in ("interval", "complete"):
        if norm != "linf":
            raise ValueError(f"method={method!r} certifies norm='linf' only")
        graph = _as_graph(model, limits)
        batch_size = samples_at_once(graph, batch_size, _BYTES)
        if method == "complete":
            return complete_certificate(
                graph, x, y, eps, seconds, bounds, kernels, batch_size, resume, progress
            )
        return interval_certificate(
            graph, x, y, step, max_steps, bounds, kernels, batch_size, progress
        )
    try:
        from tfdq.certificates.margin import lipschitz_certificate
    except ModuleNotFoundError as error:
        raise explained(error, "a Lipschitz certificate") from error

    target = model
    if not is_tf_keras_model(model):
        from tfdq.certificates.norm_cost import check_norms

        target = _as_graph(model, limits)
        check_norms(model, target, limits)
        batch_size = samples_at_once(target, batch_size, _BYTES)
    found = lipschitz_certificate(target, x, y, kernels=kernels, batch_size=batch_size)
    return found if norm == "l2" else _in_linf(found, check_examples(x, y)[0])


def _as_graph(model: Any, limits: Limits) -> IntegerGraph:
    """Return the integer graph of whatever has one."""
    from tflite_export.twin.integer_twin import graph_of

    is_keras = is_tf_keras_model(model) or is_keras3_model(model)
    if is_keras and not is_quantized(model):
        raise ValueError(
            f"model {model.name!r} is a float model: interval bounds are of integers. Quantize it "
            "(tfdq.quantize_model), or use method='lipschitz'"
        )
    return without_decision(graph_of(model, limits))


def _as_function(model: Any, limits: Limits) -> Predict:
    """Return a function from a batch of images to scores."""
    if is_tf_keras_model(model) or is_keras3_model(model):

        def predict(images: npt.NDArray[np.float32]) -> Any:
            # A subclassed model does not say what it takes.
            for source in model.inputs or ():
                check_sizes(images.shape, source.name, source.shape)
            return model.predict_on_batch(images)

        return predict
    if isinstance(model, IntegerGraph):
        from tflite_export.files.write import write

        content = write(without_decision(model))
    else:
        content = getattr(model, "content", model)
    if isinstance(content, (str, Path, bytes)):
        from tflite_export.runtime.interpreter import Interpreter

        allowed = limits if content is model else UNLIMITED
        interpreter = Interpreter(content, batch_size=256, limits=allowed)
        scores = without_decision(interpreter.graph)
        if scores is not interpreter.graph:
            return _as_function(replace(scores, metadata={}), UNLIMITED)
        return interpreter.predict
    if callable(model):
        return model
    raise ValueError(
        "smoothing takes a tf_keras model, a .tflite file, an IntegerGraph or a function, got "
        f"{type(model).__name__}"
    )


def _in_linf(found: Certificate, x: npt.NDArray[np.float32]) -> Certificate:
    """Turn L2 radii into the L_inf radii that they contain."""
    root = math.sqrt(math.prod(x.shape[1:]))
    return Certificate(
        found.radius / root,
        found.correct,
        found.abstained,
        "linf",
        found.method,
        found.confidence,
        found.note,
        {**found.details, "l2_radius": found.radius.tolist()},
    )
