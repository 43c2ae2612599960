"""What the norms of a file's layers cost, told before they are computed, and its limits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfdq.certificates.integer_network import convolution_of
from tfdq.certificates.linear_maps import ConvolutionMap
from tfdq.certificates.singular import CHUNK_BYTES, is_small, torus_of
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


def _average_cost(options: Pooling, size: int, window: int, stride: int) -> NormCost:
    """Return what `tflite_export.ops.windows.average_pool_axis` costs."""
    before, after = same_padding(size, window, stride) if options.padding == "SAME" else (0, 0)
    count = (size + before + after - window) // stride + 1
    return NormCost(_FACTORING * count * size * min(count, size), 4 * _REAL * count * size)


def cost_of_norms(graph: IntegerGraph) -> NormCost:
    """Return what the bounds of all layers cost: operations in all, bytes of the largest.

    Args:
        graph: a checked graph.
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
            costs.append(bound_cost(convolution_of(part)))
    return NormCost(sum(cost.operations for cost in costs), max(cost.bytes for cost in costs))


def check_norms(source: Any, graph: IntegerGraph, limits: Limits) -> None:
    """Refuse a file whose layers have norms that cost more than they may.

    Args:
        source: what the graph was read from; only files, paths or bytes, are limited.
        graph: its graph, checked.
        limits: the most that it may cost.

    Raises:
        ValueError: naming the file and the limit.
    """
    if not isinstance(source, str | Path | bytes):
        return
    size = len(load(source))
    with naming(source):
        cost = cost_of_norms(graph)
        limits.require("norm_operations", cost.operations, size)
        limits.require("norm_bytes", cost.bytes, size)
