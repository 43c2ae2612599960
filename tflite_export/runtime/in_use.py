"""Which integers the tensors of a graph can hold."""

from __future__ import annotations

import numpy as np

from tflite_export.ir.graph import INTEGER_RANGES, IntegerGraph, Tensor, activation_range
from tflite_export.ops import OPERATORS
from tflite_export.ops.spec import Keeps


def integers_in_use(graph: IntegerGraph) -> dict[int, tuple[int, int]]:
    """The smallest and largest integer that each quantized tensor can hold.

    Clamps leave an activation of k bits 2**k integers of its int8.

    Args:
        graph: a valid graph.

    Returns:
        (smallest, largest) by tensor index, for every input and every result with one grid.
    """
    known: dict[int, tuple[int, int]] = {}
    for index in graph.inputs:
        tensor = graph.tensors[index]
        if tensor.quantization is not None:
            known[index] = INTEGER_RANGES[tensor.dtype]
    for index, operator in graph.activations():
        output = graph.tensors[index]
        if output.quantization is None:
            continue
        low, high = activation_range(getattr(operator.options, "activation", "NONE"), output)
        sources = [known[i] for i in operator.inputs if i in known]
        sources += [_ends(t) for t in graph.operands(operator) if t is not None and _is_on_grid(t)]
        keeps = OPERATORS[operator.kind].keeps
        if keeps is not Keeps.NOTHING and sources:
            low = max(low, min(source[0] for source in sources))
            high = min(high, max(source[1] for source in sources))
            if keeps is Keeps.INTEGERS_AND_ZERO:
                low, high = min(low, output.zero_point), max(high, output.zero_point)
        known[index] = (low, high)
    return known


def _is_on_grid(tensor: Tensor) -> bool:
    """Whether it is a constant with a grid, and no list of sizes or positions."""
    return tensor.data is not None and tensor.quantization is not None


def _ends(constant: Tensor) -> tuple[int, int]:
    values = np.asarray(constant.data)
    return int(values.min()), int(values.max())
