"""ADD: the sum of two operands on grids of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tflite_export.ir.graph import BATCH, Elementwise, Operator, Tensor
from tflite_export.ir.requantization import Rescale, scale_and_cut, scale_away, scale_on_avx2
from tflite_export.ir.schema import OperatorSchema, activation_field
from tflite_export.ops import broadcasting, checks, spec, sums


@dataclass(frozen=True)
class Vectors:
    """Which entries of a sum built-in kernels add in vectors: whole ones from a row's start.

    Attributes:
        row: entries of a row; 0 where none is added in vectors.
        batched: the row goes on over the batch, and ``row`` is its part of one sample.
        lanes: entries of a vector.
        rounding: how a vector's terms are brought to a common scale.
    """

    row: int
    batched: bool
    lanes: int
    rounding: Rescale


def vectors_of(step: spec.Step) -> Vectors:
    """The vectors of an operator that XNNPACK does not compute.

    Raises:
        ValueError: they depend on the batch in another way than rows do that go on over it.
    """
    found = [_rows([_sized(t.shape, n) for t in step.inputs]) for n in (1, 2, 3)]
    rows, lanes = zip(*found, strict=True)
    batched = rows[1] == 2 * rows[0] and rows[2] == 3 * rows[0] and rows[0] > 0
    if len(set(lanes)) > 1 or not (batched or len(set(rows)) == 1):
        raise ValueError(
            f"operator ADD, which computes {step.output.name!r}: how built-in kernels round sums "
            f"of shapes {' and '.join(str(t.shape) for t in step.inputs)} depends on the batch; "
            "take the kernels 'default' or 'reference'"
        )
    return Vectors(rows[0], batched, lanes[0], scale_on_avx2 if lanes[0] == 16 else scale_and_cut)


def _sized(shape: spec.Shape, batch: int) -> spec.Shape:
    return tuple(batch if size == BATCH else size for size in shape)


def _rows(shapes: Sequence[spec.Shape]) -> tuple[int, int]:
    """The entries of a row and of a vector, as LiteRT parts two shapes into five runs.

    From the last dimension on: sizes that agree, sizes that are 1 in one shape only (in this shape
    only, from here on), that agree, that are 1 in the other, that agree. What is left over after
    that is added one by one.
    """
    rank = max(len(shape) for shape in shapes)
    left, right = ((1,) * (rank - len(shape)) + shape for shape in shapes)
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


def _check(operator: Operator, operands: spec.Operands, output: Tensor) -> spec.Shape:
    shape = sums.check_sum(operator, operands, output)
    present = [tensor for tensor in operands if tensor is not None]
    checks.require(
        output.dtype != "uint8" or all(tensor.shape == shape for tensor in present),
        "uint8 operands of two shapes, whose rounding is not known",
    )
    return shape


def _reference(step: spec.Step, operands: list[np.ndarray]) -> np.ndarray:
    terms = sums.centred(step, operands)
    if step.xnnpack:
        return step.finish(sums.sum_of_xnnpack(step, terms))
    result = sums.sum_of_builtin(step, terms, scale_away)
    if step.kernels.sixteens:
        kind = vectors_of(step)
        row = kind.row * (len(result) if kind.batched else 1)
        inside = np.arange(result.size) % max(row, 1) < row // kind.lanes * kind.lanes
        vectors = sums.sum_of_builtin(step, terms, kind.rounding)
        result = np.where(inside.reshape(result.shape), vectors, result)
    return step.finish(result)


def _interval(step: spec.Step, boxes: list[spec.Box]) -> spec.Box:
    """How an entry is rounded may depend on its place in the batch: take the worse of both ways."""
    if not step.kernels.sixteens or step.xnnpack:
        return spec.increasing(_reference)(step, boxes)
    ends = []
    for side, worse in ((0, np.minimum), (1, np.maximum)):
        terms = sums.centred(step, [box[side] for box in boxes])
        ways = [
            step.finish(sums.sum_of_builtin(step, terms, rounding))
            for rounding in (scale_away, vectors_of(step).rounding)
        ]
        ends.append(step.typed(worse(*ways)))
    return ends[0], ends[1]


SPEC = spec.OperatorSpec(
    kind="ADD",
    schema=OperatorSchema(Elementwise, 11, "AddOptions", (activation_field(0),), ignored=(1,)),
    check=_check,
    xnnpack=sums.taken_by_xnnpack,
    reference=_reference,
    macs=spec.no_macs,
    keeps=spec.Keeps.NOTHING,
    obstacle=spec.integers_only,
    interval=_interval,
    norm=broadcasting.norm,
    stacked=False,
    several=False,
    rounding_error=sums.rounding_error,
    missing_in=(),
    twin="add_twin",
)
