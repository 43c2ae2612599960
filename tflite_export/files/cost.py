"""What running a graph costs on one sample: bytes and elementary steps, an upper estimate."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tflite_export.ir.graph import (
    BATCH,
    DTYPES,
    Convolution,
    IntegerGraph,
    Operator,
    Pooling,
    Tensor,
)
from tflite_export.ir.limits import Limits
from tflite_export.ops import OPERATORS

_POINTER = 8
"""Bytes of the address that XNNPACK keeps for each pixel of each window."""

_SOFTMAX = 16
"""Steps of one exponential."""

_BATCH_BYTES = 1 << 27
"""Bytes of activations and windows that are computed at once; at least one sample is."""


@dataclass(frozen=True)
class Cost:
    """What one sample costs.

    Attributes:
        activations: bytes of all activations, each with the padding that its readers add.
        windows: bytes of the windows that the largest convolution or pooling gathers.
        operations: elementary steps: multiply-accumulates, comparisons, elements moved.
    """

    activations: int
    windows: int
    operations: int


def cost_of(graph: IntegerGraph) -> Cost:
    """The cost of a graph on one sample.

    Args:
        graph: a graph whose operators and shapes were checked.
    """
    moving = [*graph.inputs, *(index for index, _ in graph.activations())]
    activations = sum(_bytes(graph.tensors[index]) for index in moving)
    windows = operations = 0
    for operator in graph.operators:
        output = graph.tensors[operator.outputs[0]]
        operands = [graph.tensors[i] for i in operator.inputs if i >= 0]
        elements = max(_elements(output), _elements(operands[0]))
        if isinstance(operator.options, Convolution | Pooling):
            padded, gathered, size = _windowed(operator, operands, output)
            activations += padded
            windows = max(windows, gathered)
            if isinstance(operator.options, Pooling):
                elements = max(elements, _elements(output) * size)
        if operator.kind == "TRANSPOSE_CONV":
            # Built-in kernels hold the products of each tap, and the sums, as int32.
            columns = math.prod(operands[2].shape[1:3]) * math.prod(operands[1].shape[:3])
            windows = max(windows, 4 * (columns + _elements(output)))
        if operator.kind == "SOFTMAX":
            elements *= _SOFTMAX
        operations += max(elements, macs(graph, operator))
    return Cost(activations, windows, operations)


def read_by_operators(graph: IntegerGraph) -> int:
    """Bytes of the constants that operators read, each as often as it is read."""
    return sum(
        operand.data.nbytes
        for operator in graph.operators
        for operand in graph.operands(operator)
        if operand is not None and operand.data is not None
    )


def check_cost(graph: IntegerGraph, size: int, limits: Limits) -> None:
    """Refuse a graph that costs more than a file of its size may.

    Args:
        graph: a graph whose operators and shapes were checked.
        size: bytes of its file.
        limits: the most it may cost.

    Raises:
        ValueError: naming the limit.
    """
    cost = cost_of(graph)
    limits.require("activations", cost.activations, size)
    limits.require("windows", cost.windows, size)
    limits.require("operations", cost.operations, size)


def samples_at_once(graph: IntegerGraph, most: int, bytes_each: int = 1) -> int:
    """How many samples to compute at once so that memory stays in bounds.

    Args:
        graph: a checked graph.
        most: the number if memory were no matter, at least 1.
        bytes_each: bytes that hold one byte of an activation: 8 in the integer twin.

    Returns:
        1 to ``most``.
    """
    cost = cost_of(graph)
    each = bytes_each * (cost.activations + cost.windows)
    return max(1, min(most, _BATCH_BYTES // max(each, 1)))


def _elements(tensor: Tensor) -> int:
    return math.prod(size for size in tensor.shape if size != BATCH)


def _bytes(tensor: Tensor) -> int:
    return _elements(tensor) * DTYPES[tensor.dtype].itemsize


def _windowed(operator: Operator, operands: list[Tensor], output: Tensor) -> tuple[int, int, int]:
    """Bytes of the padded operand and of all windows, and the pixels of one window."""
    options, source = operator.options, operands[0]
    assert isinstance(options, Convolution | Pooling)
    dilations = (1, 1)
    if isinstance(options, Convolution):
        window = operands[1].shape[1:3]
        dilations = (options.dilation_h, options.dilation_w)
    else:
        window = (options.filter_h, options.filter_w)
    padded = DTYPES[source.dtype].itemsize * source.shape[3]
    for axis, stride in enumerate((options.stride_h, options.stride_w)):
        span = (window[axis] - 1) * dilations[axis] + 1
        reached = (output.shape[1 + axis] - 1) * stride + span
        padded *= max(source.shape[1 + axis], reached)
    each = _POINTER
    if operator.kind == "CONV_2D":
        each = max(each, source.shape[3] * DTYPES[source.dtype].itemsize)
    size = window[0] * window[1]
    pixels = output.shape[1] * output.shape[2]
    return padded if options.padding == "SAME" else 0, pixels * size * each, size


def macs(graph: IntegerGraph, operator: Operator) -> int:
    """Multiply-accumulates of one operator on one sample."""
    spec = OPERATORS.get(operator.kind)
    if spec is None or not operator.outputs:
        return 0
    return spec.macs(graph.operands(operator), graph.tensors[operator.outputs[0]])


def count_macs(graph: IntegerGraph) -> int:
    """Multiply-accumulates of the whole graph on one sample."""
    return sum(macs(graph, operator) for operator in graph.operators)
