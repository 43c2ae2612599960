"""ADD: the sum of two operands on grids of their own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tflite_export.ir.graph import Elementwise, Operator, Tensor
from tflite_export.ir.requantization import scale_away, scale_on_avx2
from tflite_export.ir.schema import OperatorSchema, activation_field
from tflite_export.ops import broadcasting, checks, spec, sums


def _check(operator: Operator, operands: spec.Operands, output: Tensor) -> spec.Shape:
    shape = sums.check_sum(operator, operands, output)
    shapes = [tensor.shape for tensor in operands if tensor is not None]
    checks.require(all(found == shape for found in shapes), f"shapes {shapes} differ")
    return shape


def _reference(step: spec.Step, operands: list[np.ndarray]) -> np.ndarray:
    terms = sums.centred(step, operands)
    if step.xnnpack:
        return step.finish(sums.sum_of_xnnpack(step, terms))
    result = sums.sum_of_builtin(step, terms, scale_away)
    if step.kernels.sixteens:
        whole = result.size // 16 * 16
        vectors = sums.sum_of_builtin(step, terms, scale_on_avx2)
        result.reshape(-1)[:whole] = vectors.reshape(-1)[:whole]
    return step.finish(result)


def _interval(step: spec.Step, boxes: list[spec.Box]) -> spec.Box:
    """How an entry is rounded may depend on its place in the batch: take the worse of both ways."""
    if not step.kernels.sixteens or step.xnnpack:
        return spec.increasing(_reference)(step, boxes)
    alone = replace(step, kernels=replace(step.kernels, sixteens=False))
    ends = []
    for side, worse in ((0, np.minimum), (1, np.maximum)):
        corner = [box[side] for box in boxes]
        repeated = [np.concatenate([values] * 16) for values in corner]
        vectors = _reference(step, repeated)[: len(corner[0])]
        ends.append(step.typed(worse(vectors, _reference(alone, corner))))
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
    twin="add_twin",
)
