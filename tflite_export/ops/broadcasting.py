"""Operands of two shapes: entries of size 1 are repeated, as NumPy and LiteRT repeat them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tflite_export.ir.graph import Tensor
from tflite_export.ops import checks, spec

_LARGEST_RANK = 4
"""The kernels' loops over repeated entries go over four dimensions."""


def check_pair(operands: spec.Operands, output: Tensor) -> list[Tensor]:
    """Check two operands of one type, of which not both are constants.

    Args:
        operands: of the operator.
        output: its result.

    Returns:
        The operands.
    """
    present = checks.operands_of(operands, 2, 2)
    for tensor in (*present, output):
        checks.quantized_or_float(tensor)
        checks.require(
            tensor.dtype == output.dtype, f"types {tensor.dtype} and {output.dtype} are mixed"
        )
    checks.require(not all(tensor.is_constant for tensor in present), "both operands are constants")
    return present


def broadcast(operands: Sequence[Tensor]) -> spec.Shape:
    """The shape of the result.

    Activations have as many dimensions as the result, the batch first; a constant may have fewer,
    which are the last ones.
    """
    rank = max(len(tensor.shape) for tensor in operands)
    result = [1] * rank
    for tensor in operands:
        checks.require(
            tensor.is_constant or len(tensor.shape) == rank,
            f"{tensor.name!r} has {len(tensor.shape)} dimensions, the other operand {rank}; only a "
            "constant may have fewer",
        )
    batch = next(tensor.shape[:1] for tensor in operands if not tensor.is_constant)
    for tensor in operands:
        shape = (1,) * (rank - len(tensor.shape)) + tensor.shape
        checks.require(
            shape[:1] == batch or (tensor.is_constant and shape[:1] == (1,)),
            f"{tensor.name!r} has shape {tensor.shape}; its batch is not {batch[0]}",
        )
        for axis, size in enumerate(shape):
            checks.require(
                1 in (size, result[axis]) or size == result[axis],
                f"shapes {' and '.join(str(t.shape) for t in operands)} differ",
            )
            result[axis] = size if result[axis] == 1 else result[axis]
    if any(tensor.shape != tuple(result) for tensor in operands):
        checks.require(
            rank <= _LARGEST_RANK,
            f"shapes {' and '.join(str(t.shape) for t in operands)} differ in more than "
            f"{_LARGEST_RANK} dimensions",
        )
    return (*batch, *result[1:])


def repeats(tensor: Tensor, output: Tensor) -> float:
    """How often each entry of an operand that is no constant stands in the result."""
    return math.prod(output.shape[1:]) / math.prod(tensor.shape[1:])


def norm(step: spec.Step) -> float:
    """One, or the root of how often the entries of an operand are repeated."""
    moving = [tensor for tensor in step.inputs if not tensor.is_constant]
    most = max(repeats(tensor, step.output) for tensor in moving)
    return 1.0 if most == 1.0 else math.sqrt(most) * spec.ROUND_UP
