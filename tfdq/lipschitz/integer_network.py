"""The norms of a deployed network: its integer kernels times their scales, and its rounding."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tfdq.lipschitz.intervals import check_intervals, linear_part
from tfdq.lipschitz.layer_maps import average_pool_axis, max_pool_axis
from tfdq.lipschitz.network import LayerRow, LipschitzReport, compose
from tfdq.lipschitz.norms import measure
from tflite_export.graph import IntegerGraph, Operator, Pooling, Tensor
from tflite_export.reference import KERNEL_SETS, Step, add_multipliers

# An output beyond 512 steps is clamped whatever its error; five float32 roundings lie before it.
_FLOAT32 = 512 * 5 * 2.0**-24
_FIXED_POINT = 0.25 + 512 * 2.0**-30
_SOFTMAX_CONSTANT = 0.5


@dataclass(frozen=True)
class IntegerNetwork:
    """A deployed network as rows of a report, with what its rounding may add.

    Attributes:
        rows: one for each operator and for the input, in execution order.
        roundings: for each row, the largest L2 distance in real units that its rounding can put
            between two of its outputs, beyond what ``rows`` says.
        tensors: the tensor that each row computes.
    """

    rows: tuple[LayerRow, ...]
    roundings: tuple[float, ...]
    tensors: tuple[int, ...]


def integer_network(
    graph: IntegerGraph, kernels: str = "xnnpack", tolerance: float = 1e-5
) -> IntegerNetwork:
    """Measure every operator of an integer graph in real units.

    Args:
        graph: the graph, one input and one output.
        kernels: whose rounding, a key of `tflite_export.reference.KERNEL_SETS`.
        tolerance: relative residual of the measured norms.

    Raises:
        ValueError: an operator is not known, ``kernels`` is unknown, or an image size is open.
    """
    check_intervals(graph)
    if kernels not in KERNEL_SETS:
        raise ValueError(f"kernels is {kernels!r}; known: {', '.join(KERNEL_SETS)}")
    source = graph.inputs[0]
    tensor = graph.tensors[source]
    place = {source: 0}
    rows = [LayerRow(tensor.name, "input", (), 1.0, (), None, 1.0)]
    roundings = [0.0 if tensor.dtype == "float32" else _spread(tensor, 0.5)]
    tensors = [source]
    for operator in graph.operators:
        moving = [i for i in operator.inputs if i in place]
        inputs = tuple(place[i] for i in moving)
        sigma, upper, reshaped = _operator_norm(graph, operator, tolerance)
        stacked = operator.kind in ("CONCATENATION", "MAXIMUM", "MINIMUM")
        uppers = (upper,) * len(inputs)
        bound = compose(uppers, [rows[i].cumulative for i in inputs], stacked)
        output = graph.tensors[operator.outputs[0]]
        name = operator.label or output.name
        place[operator.outputs[0]] = len(rows)
        tensors.append(operator.outputs[0])
        rows.append(LayerRow(name, operator.kind, inputs, sigma, uppers, reshaped, bound, stacked))
        roundings.append(_spread(output, _rounding_error(graph, operator, kernels)))
    return IntegerNetwork(tuple(rows), tuple(roundings), tuple(tensors))


def integer_report(
    graph: IntegerGraph, kernels: str = "xnnpack", tolerance: float = 1e-5
) -> LipschitzReport:
    """Return the report of an integer graph; see `tfdq.lipschitz.report`.

    The bound is that of the network without rounding, which is what its integers stand for.
    """
    network = integer_network(graph, kernels, tolerance)
    estimates: list[float] = []
    for row in network.rows:
        factors = (row.sigma,) * len(row.inputs)
        estimates.append(compose(factors, [estimates[i] for i in row.inputs], row.stacked))
    output = network.tensors.index(graph.outputs[0])
    return LipschitzReport(
        network.rows, network.rows[output].cumulative, estimates[output], None, "integer"
    )


def _operator_norm(
    graph: IntegerGraph, operator: Operator, tolerance: float
) -> tuple[float, float, float | None]:
    """Return measured norm, proven bound and reshaped norm of one operator, in real units."""
    options = operator.options
    if operator.kind == "SOFTMAX":
        return _SOFTMAX_CONSTANT, _SOFTMAX_CONSTANT, None
    if isinstance(options, Pooling):
        rule = max_pool_axis if operator.kind == "MAX_POOL_2D" else average_pool_axis
        height, width = graph.tensors[operator.inputs[0]].shape[1:3]
        padding = options.padding.lower()
        constant = rule(height, options.filter_h, options.stride_h, padding) * rule(
            width, options.filter_w, options.stride_w, padding
        )
        return constant, constant, None
    if operator.kind == "MEAN":
        constant = 1.0 / math.sqrt(math.prod(graph.tensors[operator.inputs[0]].shape[1:3]))
        return constant, constant, None
    if operator.kind == "MIRROR_PAD":
        sizes = graph.tensors[operator.inputs[0]].shape[1:]
        amounts = np.asarray(graph.tensors[operator.inputs[1]].data)[1:]
        # An entry is in the result once, and once more for each margin that mirrors it.
        copies = [
            1 + (max(pair) > 0) + (sum(pair) >= size - 1)
            for size, pair in zip(sizes, amounts, strict=True)
        ]
        constant = math.sqrt(math.prod(copies))
        return constant, constant, None
    if operator.kind not in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
        return 1.0, 1.0, None
    norm = measure(linear_part(operator, *_weights(graph, operator)), tolerance)
    return norm.sigma, norm.upper, norm.reshaped


def _weights(graph: IntegerGraph, operator: Operator) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return an operator's integer weights times their scales, and the shape of one input."""
    tensor = graph.tensors[operator.inputs[1]]
    if tensor.data is None or tensor.quantization is None:
        raise ValueError(f"the weights {tensor.name!r} are not a quantized constant")
    grid = tensor.quantization
    shape = [1] * tensor.data.ndim
    shape[grid.axis] = grid.scale.size
    weights = tensor.data.astype(np.float64) * grid.scale.astype(np.float64).reshape(shape)
    image = graph.tensors[operator.inputs[0]].shape[1:]
    if any(size < 1 for size in image):
        raise ValueError(f"the input of {operator.kind} has an open size {image}; fix it first")
    return weights, image


def _spread(tensor: Tensor, error: float) -> float:
    """Return how far apart errors of ``error`` steps can put two tensors, in L2."""
    if error == 0.0:
        return 0.0
    return 2 * error * float(tensor.scale) * math.sqrt(math.prod(tensor.shape[1:]))


def _rounding_error(graph: IntegerGraph, operator: Operator, kernels: str) -> float:
    """Return by how many steps an operator's integer can differ from the exact real result."""
    output = graph.tensors[operator.outputs[0]]
    tensors = [graph.tensors[index] for index in operator.inputs if index >= 0]
    step = Step(operator, tensors, output, KERNEL_SETS[kernels])
    if operator.kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
        # The fixed-point kernels round twice; the first time in halves of a step or finer.
        return 0.5 + _FLOAT32 if step.xnnpack else 0.5 + _FIXED_POINT
    if operator.kind == "ADD":
        ratios = [tensor.scale / output.scale for tensor in tensors]
        if step.xnnpack:
            _, shift = add_multipliers([t.scale for t in tensors], output.scale)
            factors = len(ratios) * 255 * 0.5 * 2.0**-shift
            return 0.5 + factors + sum(255 * float(r) * 2.0**-23 for r in ratios)
        return 1.0 + sum(255 * float(r) * 2.0**-18 for r in ratios)
    if operator.kind == "MEAN":
        # Sum times factor and offset are up to 128 steps of the input each, in steps of the output.
        largest = 128 * float(tensors[0].scale / output.scale)
        float32 = (2 * largest + 512) * 5 * 2.0**-24
        return 0.5 + float32 if step.xnnpack else 0.5 + _FIXED_POINT
    if operator.kind == "AVERAGE_POOL_2D":
        return 0.5
    if operator.kind == "SOFTMAX":
        return 1.0
    is_from_float = operator.kind == "QUANTIZE" and tensors[0].dtype == "float32"
    return 0.5 + _FLOAT32 if is_from_float else 0.0
