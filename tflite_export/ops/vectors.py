"""Which entries of a sum of two operands built-in kernels compute in vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tflite_export.ir.graph import BATCH
from tflite_export.ir.requantization import Rescale, scale_and_cut, scale_on_avx2
from tflite_export.ops import spec


@dataclass(frozen=True)
class Vectors:
    """Which entries of a sum built-in kernels compute in vectors: whole ones from a row's start.

    Attributes:
        row: entries of a row; 0 where none is added in vectors.
        batched: the row goes on over the batch, and ``row`` is its part of one sample.
        alone: nothing is added in vectors in a batch of more than one sample.
        lanes: entries of a vector.
        rounding: how a vector's terms are brought to a common scale.
    """

    row: int
    batched: bool
    alone: bool
    lanes: int
    rounding: Rescale

    def inside(self, shape: spec.Shape) -> np.ndarray:
        """Which entries of a result of a shape are in vectors, bool of that shape."""
        row = self.row * (shape[0] if self.batched else not self.alone or shape[0] == 1)
        places = np.arange(math.prod(shape)).reshape(shape) % max(row, 1)
        return np.asarray(places < row // self.lanes * self.lanes)


def vectors_of(step: spec.Step) -> Vectors:
    """The vectors of an operator that XNNPACK does not compute.

    Sums of int16 are computed in vectors where both operands have one shape, which a constant has
    beside a single sample.

    Raises:
        ValueError: they depend on the batch in another way than rows do that go on over it.
    """
    if step.output.dtype == "int16":
        alike = [_one_shape([_sized(t.shape, n) for t in step.inputs]) for n in (1, 2)]
        row = math.prod(_sized(step.output.shape, 1)) if alike[0] else 0
        return Vectors(row, alike[1], not alike[1], 16, scale_on_avx2)
    found = [_rows([_sized(t.shape, n) for t in step.inputs]) for n in (1, 2, 3)]
    rows, lanes = zip(*found, strict=True)
    batched = rows[1] == 2 * rows[0] and rows[2] == 3 * rows[0] and rows[0] > 0
    if len(set(lanes)) > 1 or not (batched or len(set(rows)) == 1):
        raise ValueError(
            f"operator {step.operator.kind}, which computes {step.output.name!r}: how built-in "
            f"kernels round shapes {' and '.join(str(t.shape) for t in step.inputs)} depends on "
            "the batch; take the kernels 'default' or 'reference'"
        )
    rounding = scale_on_avx2 if lanes[0] == 16 else scale_and_cut
    return Vectors(rows[0], batched, False, lanes[0], rounding)


def _sized(shape: spec.Shape, batch: int) -> spec.Shape:
    return tuple(batch if size == BATCH else size for size in shape)


def _one_shape(shapes: Sequence[spec.Shape]) -> bool:
    """Whether two shapes are one, but for sizes of 1 in front."""
    left, right = _of_one_rank(shapes)
    return left == right


def _of_one_rank(shapes: Sequence[spec.Shape]) -> list[spec.Shape]:
    rank = max(len(shape) for shape in shapes)
    return [(1,) * (rank - len(shape)) + shape for shape in shapes]


def _rows(shapes: Sequence[spec.Shape]) -> tuple[int, int]:
    """The entries of a row and of a vector, as LiteRT parts two shapes into five runs.

    From the last dimension on: sizes that agree, sizes that are 1 in one shape only (in this shape
    only, from here on), that agree, that are 1 in the other, that agree. What is left over after
    that is added one by one.
    """
    left, right = _of_one_rank(shapes)
    if left == right:
        return math.prod(left), 16
    pairs = list(zip(left, right, strict=True))
    last = next(pair for pair in reversed(pairs) if pair[0] != pair[1])
    if last[0] != 1:
        pairs = [(b, a) for a, b in pairs]
    runs = (
        lambda a, b: a == b,
        lambda a, b: a == 1,
        lambda a, b: a == b,
        lambda a, b: b == 1,
        lambda a, b: a == b,
    )
    sizes = []
    for belongs in runs:
        size = 1
        while pairs and belongs(*pairs[-1]):
            size *= max(pairs.pop())
        sizes.append(size)
    if pairs:
        return 0, 16
    return (sizes[0], 16) if sizes[0] > 1 else (sizes[1], 8)
