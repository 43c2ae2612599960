"""SLICE: a part of every dimension but the batch, which is taken whole."""

from __future__ import annotations

import numpy as np

from tflite_export.ir.graph import BATCH, NoOptions, Operator, Tensor
from tflite_export.ir.schema import OperatorSchema
from tflite_export.ops import spec
from tflite_export.ops.checks import Problem, operands_of, require, same_grid


def _check(operator: Operator, operands: spec.Operands, output: Tensor) -> spec.Shape:
    del operator
    source, begin, size = operands_of(operands, 3, 3)
    same_grid([source, output])
    require(not source.is_constant, "the input is a constant")
    rank = len(source.shape)
    require(1 <= rank <= 4, f"{rank} dimensions, expected up to 4")
    for tensor in (begin, size):
        if tensor.data is None or tensor.dtype != "int32" or tensor.shape != (rank,):
            raise Problem(f"begin and size are not constant lists of {rank} int32")
    starts, sizes = ([int(value) for value in np.asarray(t.data)] for t in (begin, size))
    every = sizes[0] == BATCH or sizes[0] == source.shape[0] == 1
    require(starts[0] == 0 and every, "the batch is cut")
    for start, length, whole in zip(starts[1:], sizes[1:], source.shape[1:], strict=True):
        require(
            start >= 0 and length >= 1 and start + length <= whole,
            f"{length} from {start} on are not within {whole}",
        )
    return (source.shape[0], *sizes[1:])


def _reference(step: spec.Step, operands: list[np.ndarray]) -> np.ndarray:
    del step
    begin, size = (values[1:] for values in operands[1:])
    return operands[0][(slice(None), *map(slice, begin, begin + size))]


SPEC = spec.OperatorSpec(
    kind="SLICE",
    schema=OperatorSchema(NoOptions, 48, "SliceOptions"),
    check=_check,
    xnnpack=spec.unless_int4_or_int16,
    reference=_reference,
    macs=spec.no_macs,
    keeps=spec.Keeps.INTEGERS,
    obstacle=spec.any_type,
    interval=spec.increasing(_reference),
    norm=spec.non_expansive,
    stacked=False,
    several=False,
    rounding_error=spec.exact,
    int16_in=(),
    missing_in=(),
    twin="slice_twin",
)
