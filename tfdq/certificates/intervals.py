"""Interval bounds on a deployed network's integers: sound for the bits that ship, no slack.

Every operator of an integer graph is monotone in each of its input integers, requantization
included, so its smallest and largest outputs over a box are attained at corners that are known
from the signs of the weights. The bounds are computed by the operators' own arithmetic (the
`interval` of each in `tflite_export.ops`), so nothing is approximated and nothing has to be rounded
outwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tflite_export.ir.graph import (
    DTYPES,
    INTEGER_RANGES,
    FullyConnected,
    IntegerGraph,
    Operator,
    Softmax,
    Tensor,
    activation_range,
)
from tflite_export.ops import OPERATORS
from tflite_export.ops.softmax import SMALLEST_SUM
from tflite_export.ops.spec import FLOAT32_ERROR, KERNEL_SETS, Box

IntegerArray = npt.NDArray[Any]

# Two accumulators are compared.
_FLOAT32_SLACK = 2 * FLOAT32_ERROR


@dataclass(frozen=True)
class IntervalBounds:
    """What is known of a graph's values over a box of inputs.

    Attributes:
        values: smallest and largest integer of every computed tensor, by tensor index.
    """

    values: dict[int, Box]


def check_intervals(graph: IntegerGraph) -> None:
    """Say whether every operator of a graph has an interval rule.

    Raises:
        ValueError: naming the operator that has none and the tensor that it computes, or for a
            graph with several inputs or outputs.
    """
    for operator in graph.operators:
        output = graph.tensors[operator.outputs[0]]
        where = f"operator {operator.kind}, which computes {output.name!r},"
        if operator.kind not in OPERATORS:
            raise ValueError(
                f"{where} has no interval rule, so nothing can be certified; there is one for "
                f"{', '.join(OPERATORS)}"
            )
        operands = [graph.tensors[i] for i in operator.inputs if i >= 0]
        obstacle = OPERATORS[operator.kind].obstacle(operands, output)
        if obstacle:
            raise ValueError(f"{where} {obstacle}")
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise ValueError(
            f"a graph with one input and one output is certified, this has {len(graph.inputs)} "
            f"and {len(graph.outputs)}"
        )


def propagate(
    graph: IntegerGraph, low: IntegerArray, high: IntegerArray, kernels: str = "xnnpack"
) -> IntervalBounds:
    """Bound every value of a graph over a box of inputs.

    Args:
        graph: the integer graph, one input and one output.
        low: the box' smallest inputs, ``(n, ...)``, in the type of the graph's input.
        high: its largest inputs, the same shape.
        kernels: whose arithmetic, a key of `tflite_export.ops.spec.KERNEL_SETS`.

    Raises:
        ValueError: an operator has no rule, ``kernels`` is unknown, or ``low > high`` somewhere.

    Source: Gowal et al., *On the Effectiveness of Interval Bound Propagation*, arXiv 1810.12715;
    here in the integers of the runtime.
    """
    check_intervals(graph)
    if kernels not in KERNEL_SETS:
        raise ValueError(f"kernels is {kernels!r}; known: {', '.join(KERNEL_SETS)}")
    tensor = graph.tensors[graph.inputs[0]]
    low, high = (np.asarray(side, DTYPES[tensor.dtype]) for side in (low, high))
    if low.shape != high.shape or np.any(low > high):
        raise ValueError("low and high must have one shape, and low <= high everywhere")
    values: dict[int, Box] = {graph.inputs[0]: (low, high)}
    for index, operator in graph.activations():
        values[index] = bound_result(graph, operator, values, kernels, index)
    return IntervalBounds(values)


def bound_result(
    graph: IntegerGraph, operator: Operator, values: dict[int, Box], kernels: str, index: int
) -> Box:
    """Bound one of an operator's results from the bounds of its inputs.

    Args:
        graph: the integer graph.
        operator: one of its operators.
        values: bounds of what the operator reads, by tensor index.
        kernels: as for `propagate`.
        index: of the result's tensor.
    """
    place = operator.outputs.index(index)
    present = [index for index in operator.inputs if index >= 0]
    tensors = [graph.tensors[index] for index in present]
    boxes: list[Box] = [
        (t.data, t.data) if t.data is not None else values[i]
        for i, t in zip(present, tensors, strict=True)
    ]
    spec = OPERATORS[operator.kind]
    step = spec.step(operator, tensors, graph.tensors[operator.outputs[place]], kernels, place)
    return spec.interval(step, boxes)


def robust_classes(
    graph: IntegerGraph, bounds: IntervalBounds, classes: IntegerArray, kernels: str = "xnnpack"
) -> npt.NDArray[np.bool_]:
    """Tell for which examples a class is the strict maximum of the output all over the box.

    Beyond comparing the output's intervals, the differences of a last fully connected operator's
    accumulators are bounded directly (its inputs cannot be at their worst for two classes at
    once), and the differences of probabilities behind a last softmax. A tie counts as an error.

    Args:
        graph: the integer graph.
        bounds: from `propagate`.
        classes: ``(n,)`` integers, the class of each example.
        kernels: as for `propagate`.

    Returns:
        bool ``(n,)``.
    """
    return np.all(separated_classes(graph, bounds, classes, kernels), axis=1)


def separated_classes(
    graph: IntegerGraph, bounds: IntervalBounds, classes: IntegerArray, kernels: str = "xnnpack"
) -> npt.NDArray[np.bool_]:
    """Tell which other classes stay strictly below each example's class all over the box.

    Arguments as of `robust_classes`.

    Returns:
        bool ``(n, number of classes)``; True for the example's own class.
    """
    rows = np.arange(len(classes))
    low, high = bounds.values[graph.outputs[0]]
    low, high = low.reshape(len(rows), -1), high.reshape(len(rows), -1)
    strict = low[rows, classes][:, None] > high
    last = last_arithmetic(graph)
    if last is not None and last.kind == "FULLY_CONNECTED":
        strict |= _by_accumulators(graph, last, bounds, classes, kernels)
    if last is not None and last.kind == "SOFTMAX":
        strict |= _by_probabilities(graph, last, bounds, classes)
    strict[rows, classes] = True
    return strict


def last_arithmetic(graph: IntegerGraph) -> Operator | None:
    """Return the operator that computes the output, past those that only rename its integers."""
    producer = dict(graph.activations())
    operator = producer.get(graph.outputs[0])
    while operator is not None and renames(graph, operator):
        operator = producer.get(operator.inputs[0])
    return operator


def renames(graph: IntegerGraph, operator: Operator) -> bool:
    """Tell whether an operator gives its input's integers other names, in the same order."""
    if operator.kind != "QUANTIZE":
        return operator.kind in ("DEQUANTIZE", "RESHAPE")
    source, target = graph.tensors[operator.inputs[0]], graph.tensors[operator.outputs[0]]
    if source.dtype == "float32" or source.scale != target.scale:
        return False
    shift = target.zero_point - source.zero_point
    (low, high), (lowest, highest) = (INTEGER_RANGES[t.dtype] for t in (source, target))
    return low + shift >= lowest and high + shift <= highest


def _by_accumulators(
    graph: IntegerGraph,
    operator: Operator,
    bounds: IntervalBounds,
    classes: npt.NDArray[np.intp],
    kernels: str,
) -> npt.NDArray[np.bool_]:
    """Compare two classes by the difference of their accumulators.

    With one scale ``m`` for all classes, ``q = clamp(rint(m acc) + z)``: if ``m (acc_y - acc_j)``
    is above 1 all over the box, the rounded values differ by at least 1, and so do the clamped
    ones unless both lie beyond the same end, which the outputs' own intervals exclude.
    """
    source, weight, *rest = (index for index in operator.inputs if index >= 0)
    scales = graph.tensors[weight].quantization
    output = graph.tensors[operator.outputs[0]]
    tensors = [graph.tensors[index] for index in (source, weight, *rest)]
    step = OPERATORS[operator.kind].step(operator, tensors, output, kernels)
    count = len(classes)
    if scales is None or scales.scale.size != 1 or not step.xnnpack:
        return np.zeros((count, int(np.prod(output.shape[1:]))), bool)
    assert isinstance(operator.options, FullyConnected)
    weights = _constant(graph.tensors[weight])
    bias = _constant(graph.tensors[rest[0]]) if rest else np.zeros(len(weights))
    box = bounds.values[source]
    zero = graph.tensors[source].zero_point
    low, high = (np.asarray(s, np.float64).reshape(count, -1) - zero for s in box)
    centre, radius = low + high, high - low
    factor = float(graph.tensors[source].scale) * float(scales.scale[0]) / float(output.scale)
    bottom, top = bounds.values[operator.outputs[0]]
    lowest, highest = activation_range(operator.options.activation, output)
    result = np.zeros((count, len(weights)), bool)
    for label in np.unique(classes):
        mine = classes == label
        difference = weights[label] - weights
        least = centre[mine] @ difference.T - radius[mine] @ np.abs(difference).T
        least = least / 2 + (bias[label] - bias)
        apart = least * factor > 1 + _FLOAT32_SLACK
        inside = (top[mine] < highest) & (bottom[mine][:, [label]] > lowest)
        result[mine] = apart & inside
    return result


def _constant(tensor: Tensor) -> npt.NDArray[np.float64]:
    """Return the values of a constant as float64."""
    assert tensor.data is not None
    return tensor.data.astype(np.float64)


def _by_probabilities(
    graph: IntegerGraph,
    operator: Operator,
    bounds: IntervalBounds,
    classes: npt.NDArray[np.intp],
) -> npt.NDArray[np.bool_]:
    """Compare two classes by the difference of their probabilities.

    ``p_y - p_j = (e_y - e_j) / sum e`` is least with ``y`` low and all others high; above one step
    of the output, the rounded probabilities differ.
    """
    tensor = graph.tensors[operator.inputs[0]]
    options = operator.options
    assert isinstance(options, Softmax)
    factor = float(tensor.scale) * options.beta
    low, high = (
        np.asarray(side, np.float64).reshape(len(classes), -1) * factor
        for side in bounds.values[operator.inputs[0]]
    )
    rows = np.arange(len(classes))
    shift = np.max(high, axis=1, keepdims=True)
    tops, own = np.exp(high - shift), np.exp(low - shift)[rows, classes]
    all_but_one = 1.0 - np.eye(tops.shape[1])
    total = own + (tops @ all_but_one)[rows, classes]
    needed = float(graph.tensors[operator.outputs[0]].scale) * 1.01 * total
    return (own[:, None] - tops > needed[:, None]) & (total > SMALLEST_SUM)[:, None]
