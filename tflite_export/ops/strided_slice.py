"""STRIDED_SLICE: a part of every dimension but the batch, each so many entries apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tflite_export.ir.graph import Operator, Options, Tensor
from tflite_export.ir.schema import OperatorSchema, OptionField
from tflite_export.ops import moving, spec
from tflite_export.ops.checks import operands_of, require

_LARGEST_RANK = 5


@dataclass(frozen=True)
class StridedSlice(Options):
    """Options of ``STRIDED_SLICE``: a bit for each dimension.

    Attributes:
        begin_mask: it starts at the first entry (with a negative stride, the last).
        end_mask: it ends behind the last entry (with a negative stride, before the first).
        ellipsis_mask: not supported.
        new_axis_mask: not supported.
        shrink_axis_mask: the one entry at ``begin`` is taken and the dimension left out.
        offset: ``end`` is counted from ``begin``; not supported.
    """

    begin_mask: int = 0
    end_mask: int = 0
    ellipsis_mask: int = 0
    new_axis_mask: int = 0
    shrink_axis_mask: int = 0
    offset: bool = False


def parts(options: Options | None, operands: list[Tensor]) -> list[slice | int]:
    """What is taken of each dimension: the batch whole, an entry, or a range."""
    assert isinstance(options, StridedSlice)
    source, *lists = operands
    begin, end, strides = (
        [int(value) for value in moving.indices_of(tensor, name)]
        for tensor, name in zip(lists, ("begin", "end", "strides"), strict=True)
    )
    require(
        1 <= len(begin) <= len(source.shape) and len(begin) == len(end) == len(strides),
        f"lists of {len(begin)}, {len(end)} and {len(strides)} for {len(source.shape)} dimensions",
    )
    first = begin[0] == 0 or options.begin_mask & 1
    last = options.end_mask & 1 or (source.shape[0] == 1 and end[0] == 1)
    whole = first and last and strides[0] == 1 and not options.shrink_axis_mask & 1
    require(bool(whole), "the batch is cut")
    taken: list[slice | int] = [slice(None)]
    for axis in range(1, len(begin)):
        bit, size = 1 << axis, source.shape[axis]
        require(strides[axis] != 0, f"stride 0 of dimension {axis}")
        if options.shrink_axis_mask & bit:
            require(
                -size <= begin[axis] < size and strides[axis] == 1,
                f"entry {begin[axis]} of dimension {axis}, which has {size}, at a stride of "
                f"{strides[axis]}",
            )
            taken.append(begin[axis])
            continue
        taken.append(
            slice(
                None if options.begin_mask & bit else begin[axis],
                None if options.end_mask & bit else end[axis],
                strides[axis],
            )
        )
    return taken


def _check(operator: Operator, operands: spec.Operands, output: Tensor) -> spec.Shape:
    options = operator.options
    assert isinstance(options, StridedSlice)
    present = operands_of(operands, 4, 4)
    moving.check_moved(present[0], output)
    shape = present[0].shape
    require(1 <= len(shape) <= _LARGEST_RANK, f"{len(shape)} dimensions, expected up to 5")
    for name in ("ellipsis_mask", "new_axis_mask", "offset"):
        require(not getattr(options, name), f"{name} is {getattr(options, name)}, expected 0")
    taken = parts(options, present)
    rest = [
        len(range(*part.indices(size)))
        for part, size in zip(taken[1:], shape[1:], strict=False)
        if isinstance(part, slice)
    ]
    require(all(size >= 1 for size in rest), f"nothing is taken of {shape}")
    return (shape[0], *rest, *shape[len(taken) :])


def _reference(step: spec.Step, operands: list[np.ndarray]) -> np.ndarray:
    return operands[0][tuple(parts(step.operator.options, step.inputs))]


_MASKS = ("begin_mask", "end_mask", "ellipsis_mask", "new_axis_mask", "shrink_axis_mask")
SPEC = moving.moving_spec(
    "STRIDED_SLICE",
    OperatorSchema(
        StridedSlice,
        32,
        "StridedSliceOptions",
        (
            *(OptionField(name, slot, "int32") for slot, name in enumerate(_MASKS)),
            OptionField("offset", 5, "bool"),
        ),
    ),
    _check,
    _reference,
    norm=spec.non_expansive,
    stacked=False,
    several=False,
)
