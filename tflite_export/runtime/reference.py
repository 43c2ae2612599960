"""The reference interpreter: an integer graph run in NumPy as the kernels compute it.

It needs nothing but NumPy, so that a board can say with it where its runtime departs from the
trained integers. The arithmetic is that of `ops`, one file for each operator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tflite_export.ir.graph import DTYPES, IntegerGraph, Operator
from tflite_export.ops import OPERATORS
from tflite_export.ops.spec import KERNEL_SETS


def run(
    graph: IntegerGraph, inputs: Sequence[np.ndarray], kernels: str = "xnnpack"
) -> dict[int, np.ndarray]:
    """Run a graph on a batch.

    Args:
        graph: a valid graph (see `validate`).
        inputs: one array per graph input, shape ``(batch, ...)``, in the input's type.
        kernels: whose arithmetic to follow, a key of `KERNEL_SETS`.

    Returns:
        The integers (or floats) of every tensor that is not a constant, by tensor index.

    Raises:
        ValueError: for an unknown kernel set or operator, or a wrong number of inputs.
    """
    if kernels not in KERNEL_SETS:
        raise ValueError(f"kernels is {kernels!r}; known: {', '.join(KERNEL_SETS)}")
    if len(inputs) != len(graph.inputs):
        raise ValueError(f"{len(inputs)} inputs given, the graph has {len(graph.inputs)}")
    values: dict[int, np.ndarray] = {}
    for index, value in zip(graph.inputs, inputs, strict=True):
        values[index] = np.asarray(value, DTYPES[graph.tensors[index].dtype])
    for index, operator in graph.activations():
        place = operator.outputs.index(index)
        values[index] = run_operator(graph, operator, values, kernels, place)
    return values


def run_operator(
    graph: IntegerGraph,
    operator: Operator,
    values: Mapping[int, np.ndarray],
    kernels: str = "xnnpack",
    place: int = 0,
) -> np.ndarray:
    """Run one operator.

    Args:
        graph: the graph that it is in.
        operator: the operator.
        values: the tensors it reads that are not constants, by index.
        kernels: as for `run`.
        place: which of its results.

    Returns:
        That result, in the type of its output.

    Raises:
        ValueError: if the operator has no reference.
    """
    spec = OPERATORS.get(operator.kind)
    if spec is None:
        raise ValueError(
            f"no reference for operator {operator.kind!r}; known: {', '.join(OPERATORS)}"
        )
    present = [i for i in operator.inputs if i >= 0]
    tensors = [graph.tensors[i] for i in present]
    operands = [
        tensor.data if tensor.data is not None else values[index]
        for index, tensor in zip(present, tensors, strict=True)
    ]
    step = spec.step(operator, tensors, graph.tensors[operator.outputs[place]], kernels, place)
    return step.typed(spec.reference(step, operands))
