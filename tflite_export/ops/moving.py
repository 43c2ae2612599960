"""What operators share that only move integers: from one place of a tensor to another."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tflite_export.ir.graph import Tensor
from tflite_export.ir.schema import OperatorSchema
from tflite_export.ops import checks, spec

LARGEST_RANK = 6


def moving_spec(
    kind: str,
    schema: OperatorSchema,
    check: Callable[..., spec.Shape],
    reference: Callable[[spec.Step, list[np.ndarray]], np.ndarray],
    norm: Callable[[spec.Step], float],
    stacked: bool,
    several: bool,
) -> spec.OperatorSpec:
    """Return the specification of an operator whose result is made of its operands' integers.

    Args:
        kind: the operator.
        schema: as of `spec.OperatorSpec`, and so are the rest.
        check: what an operand, option or result must be.
        reference: the move.
        norm: the root of how often an entry is repeated.
        stacked: whether several operands land in separate entries.
        several: whether there are several results.
    """
    return spec.OperatorSpec(
        kind=kind,
        schema=schema,
        check=check,
        xnnpack=spec.unless_int4_or_int16,
        reference=reference,
        macs=spec.no_macs,
        keeps=spec.Keeps.INTEGERS,
        obstacle=spec.any_type,
        interval=spec.increasing(reference),
        norm=norm,
        stacked=stacked,
        several=several,
        rounding_error=spec.exact,
        int16_in=(),
        missing_in=(),
        twin=f"{kind.lower()}_twin",
    )


def check_moved(source: Tensor, output: Tensor) -> None:
    """The operand is an activation, and its result has its type and grid."""
    checks.same_grid([source, output])
    checks.require(not source.is_constant, "the operand is a constant")


def axis_of(axis: int, rank: int) -> int:
    """A dimension counted from the first, which is the batch and not to be moved."""
    counted = axis + rank if axis < 0 else axis
    checks.require(
        1 <= counted < rank, f"axis {axis} of {rank} dimensions, of which the first is the batch"
    )
    return counted


def indices_of(tensor: Tensor, what: str, ranks: tuple[int, ...] = (1,)) -> np.ndarray:
    """The values of a constant of int32.

    Args:
        tensor: the operand.
        what: its name in messages.
        ranks: the numbers of dimensions that it may have.
    """
    if tensor.data is None or tensor.dtype != "int32" or len(tensor.shape) not in ranks:
        raise checks.Problem(
            f"{what} {tensor.name!r} is not a constant of int32 with {' or '.join(map(str, ranks))}"
            " dimensions"
        )
    return np.asarray(tensor.data).astype(np.int64)


def axes_of(tensor: Tensor, rank: int) -> tuple[int, ...]:
    """The dimensions that a constant operand names, in order, each once."""
    named = indices_of(tensor, "the list of axes", (0, 1)).reshape(-1)
    axes = sorted({axis_of(int(axis), rank) for axis in named})
    checks.require(bool(axes), "no axis is named")
    return tuple(axes)


def reduced(shape: spec.Shape, axes: tuple[int, ...], keep: bool) -> spec.Shape:
    """The shape that is left, with ones in place of the axes if they are kept."""
    left = (
        1 if axis in axes else size for axis, size in enumerate(shape) if keep or axis not in axes
    )
    return tuple(left)
