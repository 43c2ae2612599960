"""The Lipschitz-margin certificate: an L2 radius from a network's norm and its logits' margin.

If no change of the input by ``r`` can move the difference of two logits by their margin, the
prediction stands. A quantized network is not Lipschitz: each rounding may add a fixed distance,
however small the change. Those distances are composed along the graph like the norms, and taken
off the margin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import tf_keras

from tfdq.certificates.certificate import (
    Certificate,
    check_examples,
    check_graph_examples,
    check_label_range,
)
from tfdq.certificates.integer_network import integer_network
from tfdq.certificates.intervals import check_intervals
from tfdq.certificates.layer_maps import (
    KernelChoice,
    effective_kernel,
    layer_activation,
)
from tfdq.certificates.layer_report import LayerRow, compose
from tfdq.certificates.linear_maps import Array
from tfdq.certificates.network import lipschitz_report
from tfdq.penalties.kernel_layers import has_kernel, unwrap
from tfdq.quantization.graph import Graph, Node, read_graph
from tflite_export.ir.affine import quantize
from tflite_export.ir.graph import BATCH, IntegerGraph, Quantization, Tensor
from tflite_export.runtime.input_check import check_range, check_shape
from tflite_export.runtime.reference import run

_ROUND_UP = 1 + 1e-12


@dataclass(frozen=True)
class OutputSensitivity:
    """How far the difference of two logits can move when the input moves by ``r`` in L2.

    The difference of logits ``y`` and ``j`` moves by at most ``slope[y, j] * r + offset[y, j]``.

    Attributes:
        slope: float64 ``(classes, classes)``.
        offset: float64 ``(classes, classes)``, what rounding may add; 0 for a float network.
        network: the bound of the network's Lipschitz constant, up to the logits.
        apart: what a logit must be above all others so that the rounded probabilities behind it
            differ too; 0 where the logits decide.
    """

    slope: Array
    offset: Array
    network: float
    apart: float = 0.0


def rounding_distances(rows: Sequence[LayerRow], own: Sequence[float]) -> list[float]:
    """Compose what rounding may add along a network.

    Args:
        rows: a report's rows.
        own: for each row, what its own rounding may add to the distance of two outputs.

    Returns:
        For each row, the distance that all roundings up to there may add, in L2.
    """
    total: list[float] = []
    for row, mine in zip(rows, own, strict=True):
        before = [total[i] for i in row.inputs]
        total.append((compose(row.upper, before, row.stacked) if before else 0.0) + mine)
    return total


def lipschitz_certificate(
    model: Any,
    x: Any,
    y: Any,
    kernel: KernelChoice = "fake_quantized",
    kernels: str = "xnnpack",
    batch_size: int = 256,
) -> Certificate:
    """Certify a network in L2 by its Lipschitz constant and its margins.

    The radius is ``min_j (z_y - z_j - rounding) / L_yj`` with ``L_yj = sqrt(2) L``, or, behind a
    last dense layer, ``||w_y - w_j||`` times the constant up to there. A float network's is
    ``margin / (sqrt(2) L)`` as usual; logits are taken before a softmax. For a quantized network
    the rounding is accounted for by its worst case, which grows with the square root of the
    number of activations: the certificate is then commonly vacuous, and says so.

    A float or fake-quantized network is taken to compute in real numbers; its float32 arithmetic
    is not accounted for. An integer network's is.

    Args:
        model: a built tf_keras model, float or quantized; or an `IntegerGraph`.
        x: examples ``(n, ...)``, on the scale of the training data.
        y: integer labels ``(n,)``.
        kernel: of a quantized Keras model, ``"fake_quantized"``, or ``"float"`` for the network
            without any quantization of its weights.
        kernels: of an integer network, whose arithmetic (a key of
            `tflite_export.ops.spec.KERNEL_SETS`).
        batch_size: examples at a time.

    Raises:
        ValueError: the network has layers without a known constant, or the arguments do not fit.

    Source: Tsuzuku, Sato, Sugiyama, *Lipschitz-Margin Training*, NeurIPS 2018, proposition 1.
    """
    if isinstance(model, IntegerGraph):
        check_intervals(model)
        images, labels = check_graph_examples(model, x, y)
        logits, predicted, sensitivity = _integer_logits(model, images, kernels, batch_size)
    else:
        images, labels = check_examples(x, y)
        _check_input(model, images)
        logits, predicted, sensitivity = _keras_logits(model, images, kernel, batch_size)
    check_label_range(labels, logits.shape[1])
    rows = np.arange(len(logits))
    margin = logits[rows, predicted][:, None] - logits
    slope, offset = sensitivity.slope[predicted], sensitivity.offset[predicted]
    other = np.ones(margin.shape, bool)
    other[rows, predicted] = False
    with np.errstate(divide="ignore", invalid="ignore"):
        reach = np.where(other, (margin - offset - sensitivity.apart) / slope, np.inf)
    radius = np.maximum(np.min(np.nan_to_num(reach, nan=0.0, posinf=np.inf), axis=1), 0.0)
    correct = predicted == labels
    closest = np.min(np.where(other, margin, np.inf), axis=1)
    note = ""
    if not np.any(correct & (radius > 0)):
        note = (
            f"Vacuous: rounding alone may move the difference of two logits by "
            f"{float(np.max(sensitivity.offset)):.4g}, the median margin is "
            f"{float(np.median(closest)):.4g}. Use norm='linf' (intervals) or smoothing."
        )
    details = {
        "network_constant": sensitivity.network,
        "rounding": float(np.max(sensitivity.offset)),
        "median_margin": float(np.median(closest)),
    }
    abstained = np.zeros(len(images), bool)
    return Certificate(radius, correct, abstained, "l2", "lipschitz", 1.0, note, details)


def pair_sensitivity(
    constant: float,
    rounding: float,
    classes: int,
    last: tuple[Array, float, float, float] | None,
) -> OutputSensitivity:
    """Bound the movement of every difference of two logits.

    Args:
        constant: of the network up to the logits.
        rounding: distance that roundings may add to the logits, in L2.
        classes: number of logits.
        last: behind a last dense layer, its kernel ``(features, classes)``, the constant and the
            rounding up to its input, and what its own rounding may put between two values of one
            logit; None: there is none.
    """
    slope = np.array(np.sqrt(2.0) * constant)
    offset = np.array(np.sqrt(2.0) * rounding)
    if last is not None:
        weights, before, rounding_before, own = last
        rows = np.linalg.norm(weights.T[:, None] - weights.T[None], axis=2)
        slope = np.minimum(slope, rows * before)
        offset = np.minimum(offset, rows * rounding_before + 2 * own)
    # Without a last dense layer all pairs share one number, which is stored once.
    return OutputSensitivity(
        np.broadcast_to(slope * _ROUND_UP, (classes, classes)),
        np.broadcast_to(offset * _ROUND_UP, (classes, classes)),
        constant,
    )


def _check_input(model: tf_keras.Model, images: npt.NDArray[np.float32]) -> None:
    """Say whether images have the shape and the scale of a Keras model's input.

    Raises:
        ValueError: naming what is given and what is expected.
    """
    graph = read_graph(model)
    source = graph.nodes[graph.inputs[0]]
    expected = Tensor(source.layer.name, (BATCH, *(size or 0 for size in source.shape[1:])), "int8")
    if None not in source.shape[1:]:
        check_shape(images.shape, expected)
    for index in graph.consumers()[source.index]:
        grid = _grid(graph.nodes[index]) if _is_input_quantizer(graph.nodes[index]) else None
        if grid is not None:
            step = Quantization.per_tensor(grid.scale, grid.zero_point)
            check_range(images, replace(expected, quantization=step))


def _is_input_quantizer(node: Node) -> bool:
    return type(node.layer).__name__ == "InputQuantizer"


def tie_margin(step: float, beta: float, classes: int) -> float:
    """Return the margin of logits at which rounded probabilities can no longer tie.

    With a logit ``m`` above all others, its probability is above each other one by at least
    ``(1 - e) / (1 + (classes - 1) e)`` with ``e = exp(-beta m)``; more than a step of their grid
    makes their integers differ.

    Args:
        step: of the probabilities' grid.
        beta: factor in front of the logits.
        classes: number of logits.
    """
    needed = 1.01 * step
    if needed >= 1.0:
        return math.inf
    return -math.log((1.0 - needed) / (1.0 + needed * (classes - 1))) / beta


def _keras_logits(
    model: tf_keras.Model,
    images: npt.NDArray[np.float32],
    kernel: KernelChoice,
    batch_size: int,
) -> tuple[Array, npt.NDArray[np.intp], OutputSensitivity]:
    """Return the logits of a Keras model, its predictions, and how the logits move."""
    graph = read_graph(model)
    rows = lipschitz_report(model, kernel=kernel).rows
    own = [_keras_rounding(node) for node in graph.nodes]
    distances = rounding_distances(rows, own)
    output, fused_softmax = _logits_node(graph)
    outputs = np.asarray(model.predict(images, batch_size=batch_size, verbose=0), np.float64)
    predicted = np.argmax(outputs, axis=1)
    apart = 0.0
    last = graph.nodes[graph.outputs[0]]
    if fused_softmax and _has_grid(last):
        raise ValueError(
            f"layer {last.layer.name!r} rounds the probabilities of its own softmax, whose logits "
            "are not known; put the softmax in a layer of its own"
        )
    if output != graph.outputs[0] or fused_softmax:
        # Differences of log-probabilities are differences of logits.
        outputs = np.log(np.maximum(outputs, np.finfo(np.float32).tiny))
        grid = _grid(last)
        if output != graph.outputs[0] and grid is not None:
            apart = tie_margin(float(grid.scale), 1.0, outputs.shape[1])
            logits = tf_keras.Model(model.inputs, _logits_tensor(model))
            found = logits.predict(images, batch_size=batch_size, verbose=0)
            outputs = np.asarray(found, np.float64)
    constant = rows[output].cumulative * (2.0 if fused_softmax else 1.0)
    sensitivity = pair_sensitivity(
        constant,
        distances[output],
        outputs.shape[1],
        _last_dense(graph, output, rows, distances, kernel),
    )
    return outputs, predicted, replace(sensitivity, apart=apart)


def _keras_rounding(node: Node) -> float:
    """Return what the quantizer of a node may put between two of its outputs, in L2."""
    grid = _grid(node)
    if grid is None:
        return 0.0
    sizes = [size for size in node.shape[1:] if size is not None]
    if len(sizes) != len(node.shape) - 1:
        raise ValueError(
            f"layer {node.layer.name!r} has an output of open size {node.shape[1:]}, and what its "
            "rounding adds depends on it: build the model with a fixed size"
        )
    return float(grid.scale) * math.sqrt(math.prod(sizes))


def _grid(node: Node) -> Any:
    method = getattr(node.layer, "output_grid", None)
    return None if method is None else method()


def _has_grid(node: Node) -> bool:
    return _grid(node) is not None


def _logits_node(graph: Graph) -> tuple[int, bool]:
    """Return the node of the logits, and whether a softmax is part of its own layer."""
    index = graph.outputs[0]
    inner = unwrap(graph.nodes[index].layer)
    name = layer_activation(inner)
    if has_kernel(graph.nodes[index].layer):
        return index, name == "softmax"
    if isinstance(inner, tf_keras.layers.Softmax) or name == "softmax":
        return graph.nodes[index].inputs[0], False
    return index, False


def _logits_tensor(model: tf_keras.Model) -> Any:
    """Return the tensor that a model's last layer takes."""
    return model.outputs[0].node.keras_inputs[0]


def _last_dense(
    graph: Graph,
    index: int,
    rows: Sequence[LayerRow],
    distances: Sequence[float],
    kernel: KernelChoice,
) -> tuple[Array, float, float, float] | None:
    """Return what `pair_sensitivity` needs when the logits come from a dense layer."""
    node = graph.nodes[index]
    inner = unwrap(node.layer)
    if not isinstance(inner, tf_keras.layers.Dense):
        return None
    if layer_activation(inner) not in ("linear", "softmax"):
        return None
    if getattr(inner, "fused_activation", "linear") != "linear" or len(node.shape) != 2:
        return None
    before = node.inputs[0]
    grid = _grid(node)
    step = 0.0 if grid is None else float(grid.scale)
    weights = effective_kernel(node.layer, kernel)
    return weights, rows[before].cumulative, distances[before], step


def _integer_logits(
    graph: IntegerGraph, images: npt.NDArray[np.float32], kernels: str, batch_size: int
) -> tuple[Array, npt.NDArray[np.intp], OutputSensitivity]:
    """Return the dequantized logits of an integer graph, its predictions, and how logits move."""
    network = integer_network(graph, kernels, tolerance=None)
    distances = rounding_distances(network.rows, network.roundings)
    row = network.tensors.index(graph.outputs[0])
    softmax: int | None = None
    while network.rows[row].kind == "DEQUANTIZE" or (
        network.rows[row].kind == "SOFTMAX" and softmax is None
    ):
        softmax = row if network.rows[row].kind == "SOFTMAX" else softmax
        row = network.rows[row].inputs[0]
    tensor = graph.tensors[network.tensors[row]]
    source = graph.tensors[graph.inputs[0]]
    parts, predictions = [], []
    for begin in range(0, len(images), batch_size):
        part = images[begin : begin + batch_size]
        fed = part if source.dtype == "float32" else quantize(part, source)
        values = run(graph, [fed], kernels)
        parts.append(values[network.tensors[row]].reshape(len(part), -1).astype(np.float64))
        predictions.append(values[graph.outputs[0]].reshape(len(part), -1).argmax(axis=1))
    logits = (np.concatenate(parts) - tensor.zero_point) * float(tensor.scale)
    sensitivity = pair_sensitivity(
        network.rows[row].cumulative, distances[row], logits.shape[1], None
    )
    if softmax is not None:
        # The operator's own norm is half of the factor in front of its logits.
        beta = 2.0 * network.rows[softmax].sigma
        step = float(graph.tensors[network.tensors[softmax]].scale)
        sensitivity = replace(sensitivity, apart=tie_margin(step, beta, logits.shape[1]))
    return logits, np.concatenate(predictions), sensitivity
