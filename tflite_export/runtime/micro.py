"""What a file asks of TensorFlow Lite Micro: operators to register, and memory for activations."""

from __future__ import annotations

import math

from tflite_export.ir.graph import BATCH, DTYPES, IntegerGraph, Tensor

_MISSING = ("GELU", "RELU_0_TO_1", "RELU_N1_TO_1")
"""Operators of this package that TensorFlow Lite Micro does not have."""

_OTHERWISE = {"BATCH_MATMUL": "BatchMatMul", "PADV2": "PadV2"}
"""Names that do not follow from the operator's; of CONV_2D follows Conv2D."""

_ALIGNMENT = 16
_SAME_BYTES = ("RESHAPE", "SQUEEZE", "EXPAND_DIMS")
"""Their result may lie where their operand does."""


def resolver(graph: IntegerGraph) -> str:
    """The C++ lines that register a network's operators, and no others.

    Args:
        graph: the network.

    Returns:
        A `MicroMutableOpResolver` of the right size.

    Raises:
        ValueError: TensorFlow Lite Micro lacks an operator; all of those are named.
    """
    kinds = sorted({operator.kind for operator in graph.operators})
    missing = [kind for kind in kinds if kind in _MISSING]
    if missing:
        raise ValueError(
            f"TensorFlow Lite Micro does not have {', '.join(missing)}; export the network with "
            "another activation"
        )
    lines = [f"static tflite::MicroMutableOpResolver<{len(kinds)}> ops;"]
    lines += [f"ops.Add{_method(kind)}();" for kind in kinds]
    return "\n".join(lines)


def _method(kind: str) -> str:
    return _OTHERWISE.get(kind, "".join(part.title() for part in kind.split("_")))


def least_arena(graph: IntegerGraph) -> int:
    """A lower bound of the tensor arena: the most bytes of activations alive at once, of one image.

    TensorFlow Lite Micro's own structures and the kernels' scratch memory come on top of it.

    Args:
        graph: a network with at least one operator.

    Returns:
        Bytes.
    """
    last = {index: position for position, op in enumerate(graph.operators) for index in op.inputs}
    last.update(dict.fromkeys(graph.outputs, len(graph.operators)))
    alive = set(graph.inputs)
    most = 0
    for position, operator in enumerate(graph.operators):
        if operator.kind not in _SAME_BYTES:
            alive.update(operator.outputs)
            most = max(most, sum(_bytes(graph.tensors[index]) for index in alive))
        alive.update(operator.outputs)
        alive = {index for index in alive if last.get(index, -1) > position}
    return most


def _bytes(tensor: Tensor) -> int:
    entries = math.prod(size for size in tensor.shape if size != BATCH)
    size = entries * DTYPES[tensor.dtype].itemsize
    return -(-size // _ALIGNMENT) * _ALIGNMENT
