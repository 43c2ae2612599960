"""What PAD and MIRROR_PAD demand: constant amounts around every dimension but the batch."""

from __future__ import annotations

import numpy as np

from tflite_export.ir.graph import Tensor
from tflite_export.ops import checks, spec


def check_amounts(operands: spec.Operands, output: Tensor) -> tuple[spec.Shape, np.ndarray]:
    """Check the operands of a padding.

    Returns:
        (shape of the input, amounts before and behind each dimension).
    """
    source, amounts = checks.operands_of(operands, 2, 2)
    checks.same_grid([source, output])
    checks.require(not source.is_constant, "the input is a constant")
    pairs = amounts.data
    rank = len(source.shape)
    checks.require(
        amounts.dtype == "int32" and pairs is not None and amounts.shape == (rank, 2), "bad amounts"
    )
    if pairs is None:
        raise checks.Problem("the amounts are not a constant")
    checks.require(
        bool((pairs >= 0).all() and (pairs <= checks.LARGEST_STEP).all()), "amounts out of range"
    )
    checks.require(not pairs[0].any(), "the batch is padded")
    checks.require(1 <= rank <= 4, f"{rank} dimensions, expected up to 4")
    return source.shape, pairs


def padded(shape: spec.Shape, pairs: np.ndarray) -> spec.Shape:
    """The shape of the result."""
    rest = (size + int(pair.sum()) for size, pair in zip(shape[1:], pairs[1:], strict=True))
    return (shape[0], *rest)
