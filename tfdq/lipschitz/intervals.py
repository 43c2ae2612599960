"""Interval bounds on a deployed network's integers: sound for the bits that ship, no slack.

Every operator of an integer graph is monotone in each of its input integers, requantization
included, so its smallest and largest outputs over a box are attained at corners that are known
from the signs of the weights. The bounds are computed by the operators' own arithmetic
(`tflite_export.reference`), so nothing is approximated and nothing has to be rounded outwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tfdq.lipschitz.linear_maps import ConvolutionMap, dense_map, padding_amounts
from tflite_export.graph import (
    DTYPES,
    INTEGER_RANGES,
    Convolution,
    FullyConnected,
    IntegerGraph,
    Operator,
    Softmax,
    Tensor,
    activation_range,
)
from tflite_export.reference import KERNEL_SETS, KERNELS, Step

IntegerArray = npt.NDArray[Any]
Box = tuple[IntegerArray, IntegerArray]

_MONOTONE = (
    "ADD",
    "AVERAGE_POOL_2D",
    "CONCATENATION",
    "DEQUANTIZE",
    "MAXIMUM",
    "MAX_POOL_2D",
    "MEAN",
    "MINIMUM",
    "MIRROR_PAD",
    "MUL",
    "PAD",
    "QUANTIZE",
    "RESHAPE",
    "SLICE",
)
_WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
_TAKE_FLOATS = (
    "CONCATENATION",
    "DEQUANTIZE",
    "MAXIMUM",
    "MINIMUM",
    "MIRROR_PAD",
    "QUANTIZE",
    "RESHAPE",
    "SLICE",
)
# Sums of exponentials below this may have lost their digits to underflow.
_SMALLEST_SUM = 1e-280
# Of values up to 512 steps; further out the output is clamped in any case. Five float32 roundings
# lie between an accumulator and its steps, for each of the two that are compared.
_FLOAT32_SLACK = 2 * 512 * 5 * 2.0**-24


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
    known = (*_MONOTONE, *_WEIGHTED, "SOFTMAX")
    for operator in graph.operators:
        tensors = [graph.tensors[i] for i in (*operator.inputs, *operator.outputs) if i >= 0]
        where = f"operator {operator.kind}, which computes {tensors[-1].name!r},"
        if operator.kind not in known:
            raise ValueError(
                f"{where} has no interval rule, so nothing can be certified; there is one for "
                f"{', '.join(known)}"
            )
        if operator.kind not in _TAKE_FLOATS and any(t.dtype == "float32" for t in tensors):
            raise ValueError(f"{where} runs on float32; only integer arithmetic is certified")
        if operator.kind == "MUL" and sum(t.is_constant for t in tensors[:-1]) != 1:
            raise ValueError(f"{where} is not the product of an activation with one constant")
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
        kernels: whose arithmetic, a key of `tflite_export.reference.KERNEL_SETS`.

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
    for operator in graph.operators:
        values[operator.outputs[0]] = _operate(graph, operator, values, kernels)
    return IntervalBounds(values)


def _operate(graph: IntegerGraph, operator: Operator, values: dict[int, Box], kernels: str) -> Box:
    """Bound one operator's output from the bounds of its inputs."""
    present = [index for index in operator.inputs if index >= 0]
    tensors = [graph.tensors[index] for index in present]
    boxes: list[Box] = [
        (t.data, t.data) if t.data is not None else values[i]
        for i, t in zip(present, tensors, strict=True)
    ]
    output = graph.tensors[operator.outputs[0]]
    step = Step(operator, tensors, output, KERNEL_SETS[kernels])
    if operator.kind in _WEIGHTED:
        return _weighted(step, boxes)
    if operator.kind == "SOFTMAX":
        return _softmax(step, boxes[0])
    rule = KERNELS[operator.kind]
    lower, upper = (rule(step, [box[side] for box in boxes]) for side in (0, 1))
    if operator.kind == "ADD" and step.kernels.sixteens and not step.xnnpack:
        # How an entry is rounded depends on its place in the batch: take the worse of both ways.
        alone = replace(step, kernels=replace(step.kernels, sixteens=False))
        count = len(lower)
        for side in (0, 1):
            vectors = rule(step, [np.concatenate([box[side]] * 16) for box in boxes])[:count]
            single = rule(alone, [box[side] for box in boxes])
            lower = np.minimum(lower, np.minimum(vectors, single)) if side == 0 else lower
            upper = np.maximum(upper, np.maximum(vectors, single)) if side == 1 else upper
    if operator.kind == "MUL":
        # By a constant: falling where that is negative.
        lower, upper = np.minimum(lower, upper), np.maximum(lower, upper)
    return lower.astype(DTYPES[output.dtype]), upper.astype(DTYPES[output.dtype])


def _weighted(step: Step, boxes: list[Box]) -> Box:
    """Bound a convolution or fully connected operator: positive weights take the near corner."""
    low, high = accumulator_box(step, boxes)
    bias = [boxes[2][0]] if len(boxes) > 2 else []
    ends = [_requantize(step, end, bias) for end in (low, high)]
    kind = DTYPES[step.output.dtype]
    return ends[0].astype(kind), ends[1].astype(kind)


def accumulator_box(step: Step, boxes: list[Box]) -> tuple[npt.NDArray, npt.NDArray]:
    """Bound the accumulators of an operator with weights, the bias left out.

    In the form of centre and radius: ``W (l + h) -+ |W| (h - l)`` is twice the bound, all in
    integers that float64 holds exactly.

    Returns:
        float64 integers, smallest and largest.
    """
    zero = step.inputs[0].zero_point
    low, high = (np.asarray(side, np.float64) - zero for side in boxes[0])
    centre, radius = low + high, high - low
    weights = np.asarray(boxes[1][0], np.float64)
    if isinstance(step.operator.options, FullyConnected):
        centre, radius = (side.reshape(-1, 1, 1, weights.shape[1]) for side in (centre, radius))
    middle = linear_part(step.operator, weights, centre.shape[1:]).apply(centre)
    spread = linear_part(step.operator, np.abs(weights), centre.shape[1:]).apply(radius)
    if isinstance(step.operator.options, FullyConnected):
        middle, spread = middle[:, 0, 0], spread[:, 0, 0]
    return (middle - spread) / 2, (middle + spread) / 2


def linear_part(
    operator: Operator, weights: npt.NDArray[np.float64], shape: tuple[int, ...]
) -> ConvolutionMap:
    """Return the linear part of an operator with weights, on centred inputs.

    Args:
        operator: a ``CONV_2D``, ``DEPTHWISE_CONV_2D`` or ``FULLY_CONNECTED``.
        weights: its weights in the runtime's layout, or values to take their place.
        shape: of one input, without the batch.
    """
    options = operator.options
    if isinstance(options, FullyConnected):
        return dense_map(weights.T)
    assert isinstance(options, Convolution)
    height, width, channels = shape
    depthwise = operator.kind == "DEPTHWISE_CONV_2D"
    if depthwise:
        kernel = weights[0].reshape(*weights.shape[1:3], 1, -1)
    else:
        kernel = weights.transpose(1, 2, 3, 0)
    strides = (options.stride_h, options.stride_w)
    dilation = (options.dilation_h, options.dilation_w)
    amounts = [
        padding_amounts(options.padding.lower(), size, kernel.shape[axis], stride, distance)
        for axis, (size, stride, distance) in enumerate(
            zip((height, width), strides, dilation, strict=True)
        )
    ]
    return ConvolutionMap(
        kernel,
        (height, width, channels),
        strides,
        (amounts[0], amounts[1]),
        dilation,
        channels if depthwise else 1,
    )


def _requantize(step: Step, accumulator: npt.NDArray, bias: Sequence[IntegerArray]) -> IntegerArray:
    """Turn accumulators into output integers by the operator's own arithmetic.

    The reference kernel is run with an identity for its weights, so that scale, rounding, zero
    point, clamp and fused activation stay stated in one place only.
    """
    channels = accumulator.shape[-1]
    options = step.operator.options
    kind = step.operator.kind
    values = accumulator + step.inputs[0].zero_point
    if isinstance(options, Convolution):
        options = Convolution(activation=options.activation)
        identity: IntegerArray = np.ones((1, 1, 1, channels), np.int8)
        if kind == "CONV_2D":
            identity = np.eye(channels, dtype=np.int8).reshape(channels, 1, 1, channels)
    else:
        identity = np.eye(channels, dtype=np.int8)
    plain = replace(step, operator=replace(step.operator, options=options))
    return KERNELS[kind](plain, [values, identity, *bias])


def _softmax(step: Step, box: Box) -> Box:
    """Bound each probability: largest where its logit is high and all others are low.

    The kernel's float32 arithmetic is not quite monotone, so one step is given up on each side.
    """
    options = step.operator.options
    assert isinstance(options, Softmax)
    factor = float(step.inputs[0].scale) * options.beta
    low, high = (np.asarray(side, np.float64) * factor for side in box)
    ends = []
    for mine, others, sign in ((low, high, -1), (high, low, 1)):
        shift = np.max(high, axis=-1, keepdims=True)
        own, rest = np.exp(mine - shift), np.exp(others - shift)
        total = own + rest @ _all_but_one(rest.shape[-1])
        known = total > _SMALLEST_SUM
        # Where all exponentials underflow, a probability may be anything from 0 to 1.
        share = np.where(known, own / np.where(known, total, 1.0), max(sign, 0))
        steps = np.floor(share / float(step.output.scale) + 0.5) + sign
        ends.append(np.clip(steps + step.output.zero_point, *INTEGER_RANGES[step.output.dtype]))
    kind = DTYPES[step.output.dtype]
    return ends[0].astype(kind), ends[1].astype(kind)


def _all_but_one(size: int) -> npt.NDArray[np.float64]:
    """Return the matrix that sums all entries but each one, without a cancellation."""
    return 1.0 - np.eye(size)


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
    rows = np.arange(len(classes))
    low, high = bounds.values[graph.outputs[0]]
    low, high = low.reshape(len(rows), -1), high.reshape(len(rows), -1)
    others = np.ones(low.shape, bool)
    others[rows, classes] = False
    strict = low[rows, classes][:, None] > high
    last = _last_arithmetic(graph)
    if last is not None and last.kind == "FULLY_CONNECTED":
        strict |= _by_accumulators(graph, last, bounds, classes, kernels)
    if last is not None and last.kind == "SOFTMAX":
        strict |= _by_probabilities(graph, last, bounds, classes)
    return np.all(strict | ~others, axis=1)


def _last_arithmetic(graph: IntegerGraph) -> Operator | None:
    """Return the operator that computes the output, past those that only rename its integers."""
    producer = {op.outputs[0]: op for op in graph.operators}
    operator = producer.get(graph.outputs[0])
    while operator is not None and _renames(graph, operator):
        operator = producer.get(operator.inputs[0])
    return operator


def _renames(graph: IntegerGraph, operator: Operator) -> bool:
    """Tell whether an operator gives its input's integers other names, in the same order."""
    if operator.kind != "QUANTIZE":
        return operator.kind in ("DEQUANTIZE", "RESHAPE")
    source, target = graph.tensors[operator.inputs[0]], graph.tensors[operator.outputs[0]]
    if source.dtype == "float32":
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
    step = Step(operator, tensors, output, KERNEL_SETS[kernels])
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
    total = own + (tops @ _all_but_one(tops.shape[1]))[rows, classes]
    needed = float(graph.tensors[operator.outputs[0]].scale) * 1.01 * total
    return (own[:, None] - tops > needed[:, None]) & (total > _SMALLEST_SUM)[:, None]
