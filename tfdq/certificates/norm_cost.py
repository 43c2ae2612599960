"""What the norms of a file's layers cost, told before they are computed, and its limits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfdq.certificates.integer_network import convolution_of
from tfdq.certificates.linear_maps import ConvolutionMap
from tfdq.certificates.singular import CHUNK_BYTES, MOST_ITERATIONS, is_small, torus_of
from tflite_export.files.read import load, naming
from tflite_export.ir.graph import IntegerGraph, Pooling
from tflite_export.ir.limits import Limits
from tflite_export.ops import OPERATORS
from tflite_export.ops.spec import LinearPart
from tflite_export.ops.windows import same_padding

_FACTORING = 12
"""Operations of one eigenvalue problem and of the Cholesky factorisations, in cubes of the side."""

_POWER_STEPS = 12
_ELEMENTARY = 1 << 10
"""Operations of a matrix product in the time that one entry takes elsewhere: a sine, a cosine,
sums and copies."""

_CALLS = 10**7
"""The same of the calls of NumPy for one matrix."""

_MOVED = 16
"""Operations of a matrix product in the time that a copy of one entry takes."""

_GROUPED = 16
"""The same of a product in a convolution of groups, which is no matrix product."""

_FEWEST_ITERATIONS = 20
_BASIS = 16

_LINEAR = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")
_REAL, _COMPLEX = 8, 16


@dataclass(frozen=True)
class NormCost:
    """What a norm costs.

    Attributes:
        operations: multiply-accumulates in matrix products, or what takes as long.
        bytes: memory that is held at once.
    """

    operations: int
    bytes: int


def bound_cost(linear_map: ConvolutionMap) -> NormCost:
    """Return what `tfdq.certificates.singular.norm_upper_bound` costs."""
    if is_small(linear_map):
        shapes = (linear_map.input_shape, linear_map.output_shape)
        sides = [math.prod(shape) // linear_map.groups for shape in shapes]
        side, length = min(sides), max(sides)
        return NormCost(
            linear_map.groups * (length * side * (1 + side) + _FACTORING * side**3 + _CALLS),
            _REAL * (length * side + 6 * side * side),
        )
    torus = torus_of(linear_map)
    side, length = sorted((torus.rows, torus.columns))
    taps, symbol = math.prod(torus.taps), torus.rows * torus.columns * torus.groups
    # The one symbol of a 1 x 1 kernel is real; a complex product is four real ones.
    products, item = (1, _REAL) if taps == 1 else (4, _COMPLEX)
    each = 2 * taps * side * length
    each += products * side * side * (length + _POWER_STEPS + _FACTORING * side)
    return NormCost(
        torus.frequencies * (torus.groups * each + _ELEMENTARY * (taps + symbol)),
        3 * _REAL * taps * symbol + 6 * max(CHUNK_BYTES, item * max(symbol, taps)),
    )


def measurement_cost(linear_map: ConvolutionMap, iterations: int) -> NormCost:
    """Return what `tfdq.certificates.norms.measure` costs, the bound left out.

    Args:
        linear_map: the convolution.
        iterations: steps of the power iteration.
    """
    inputs, outputs = math.prod(linear_map.input_shape), math.prod(linear_map.output_shape)
    height, width, channels, filters = linear_map.kernel.shape
    taps, pixels = height * width, math.prod(linear_map.output_shape[:2])
    padded = math.prod(linear_map.padded_size()) * linear_map.channels
    products = taps * outputs * channels * (_GROUPED if linear_map.groups > 1 else 1)
    moved = padded + taps * (pixels * linear_map.channels + outputs)
    # Each new vector is made orthogonal to all before it, twice; singular values of what is found
    # are taken at every fifth step.
    step = 2 * (products + _MOVED * moved)
    side, length = sorted((taps * channels, filters // linear_map.groups))
    reshaped = linear_map.groups * (_FACTORING * length * side**2 + _CALLS)
    rows = _BASIS
    while rows <= iterations:
        rows *= 2
    return NormCost(
        iterations * step + 2 * iterations**2 * (inputs + outputs) + iterations**4 + reshaped,
        _REAL
        * (
            (2 * rows + 8) * (inputs + outputs)
            + 4 * (padded + pixels * linear_map.channels)
            + 2 * length * side
        ),
    )


def _average_cost(options: Pooling, size: int, window: int, stride: int) -> NormCost:
    """Return what `tflite_export.ops.windows.average_pool_axis` costs."""
    before, after = same_padding(size, window, stride) if options.padding == "SAME" else (0, 0)
    count = (size + before + after - window) // stride + 1
    return NormCost(_FACTORING * count * size * min(count, size), 4 * _REAL * count * size)


def cost_of_norms(graph: IntegerGraph, iterations: int | None = None) -> NormCost:
    """Return what the norms of all layers cost: operations in all, bytes of the largest.

    Args:
        graph: a checked graph.
        iterations: steps in which each is measured; None: norms are bounded only.
    """
    costs = [NormCost(0, 0)]
    for operator in graph.operators:
        operands = [graph.tensors[i] for i in operator.inputs if i >= 0]
        options, spec = operator.options, OPERATORS[operator.kind]
        if operator.kind == "AVERAGE_POOL_2D":
            assert isinstance(options, Pooling)
            height, width = operands[0].shape[1:3]
            costs.append(_average_cost(options, height, options.filter_h, options.stride_h))
            costs.append(_average_cost(options, width, options.filter_w, options.stride_w))
        elif operator.kind in _LINEAR:
            step = spec.step(operator, operands, graph.tensors[operator.outputs[0]], "xnnpack")
            part = spec.norm(step)
            assert isinstance(part, LinearPart)
            linear_map = convolution_of(part)
            costs.append(bound_cost(linear_map))
            if iterations is not None:
                costs.append(measurement_cost(linear_map, iterations))
    return NormCost(sum(cost.operations for cost in costs), max(cost.bytes for cost in costs))


def check_norms(source: Any, graph: IntegerGraph, limits: Limits) -> None:
    """Refuse a file whose layers have norms that cost more to bound than they may.

    Args:
        source: what the graph was read from; only files, paths or bytes, are limited.
        graph: its graph, checked.
        limits: the most that it may cost.

    Raises:
        ValueError: naming the file and the limit.
    """
    if isinstance(source, str | Path | bytes):
        with naming(source):
            _require(cost_of_norms(graph), len(load(source)), limits)


def affordable_iterations(source: Any, graph: IntegerGraph, limits: Limits) -> int:
    """Return in how many steps the norms of a file's layers may be measured.

    Args:
        source: what the graph was read from; only files, paths or bytes, are limited.
        graph: its graph, checked.
        limits: the most that bounds and measurements may cost.

    Raises:
        ValueError: not even 20 are affordable; names the file and the limit.
    """
    iterations = MOST_ITERATIONS
    if not isinstance(source, str | Path | bytes):
        return iterations
    size = len(load(source))
    with naming(source):
        while iterations > _FEWEST_ITERATIONS:
            cost = cost_of_norms(graph, iterations)
            if _fits(cost, size, limits):
                return iterations
            iterations = max(iterations // 2, _FEWEST_ITERATIONS)
        _require(cost_of_norms(graph, iterations), size, limits)
    return iterations


def _fits(cost: NormCost, size: int, limits: Limits) -> bool:
    return cost.operations <= limits.allowed(
        "norm_operations", size
    ) and cost.bytes <= limits.allowed("norm_bytes", size)


def _require(cost: NormCost, size: int, limits: Limits) -> None:
    limits.require("norm_operations", cost.operations, size)
    limits.require("norm_bytes", cost.bytes, size)
