"""ADD: the sum of two activations on grids of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tflite_export.ir.graph import Elementwise, Operator, Tensor
from tflite_export.ir.requantization import Rescale, scale_away, scale_on_avx2
from tflite_export.ir.schema import OperatorSchema, activation_field
from tflite_export.ops import checks, spec


def _check(operator: Operator, operands: spec.Operands, output: Tensor) -> spec.Shape:
    assert isinstance(operator.options, Elementwise)
    present = checks.operands_of(operands, 2, 2)
    checks.check_activation(operator.options)
    for tensor in (*present, output):
        checks.quantized_or_float(tensor)
        checks.require(
            tensor.dtype == output.dtype, f"types {tensor.dtype} and {output.dtype} are mixed"
        )
        checks.require(not tensor.is_constant, "an operand is a constant")
        if output.dtype != "float32":
            ratio = tensor.scale / output.scale
            checks.require(
                bool(ratio < checks.LARGEST_FACTOR),
                f"scale {ratio} times that of the output, kernels take up to 256",
            )
    checks.require(
        present[0].shape == present[1].shape,
        f"shapes {present[0].shape}, {present[1].shape} differ",
    )
    return present[0].shape


def _xnnpack(inputs: Sequence[Tensor], output: Tensor) -> bool:
    """XNNPACK adds no very much smaller or larger step than the result's."""
    ratios = np.array([tensor.scale / output.scale for tensor in inputs])
    return bool((ratios >= 2.0**-10).all() and (ratios < 2.0**8).all())


def add_multipliers(scales: Sequence[np.float32], output: np.float32) -> tuple[list[int], int]:
    """XNNPACK's fixed-point factors of an addition: about 20 bits each, one common shift."""
    ratios = [np.float32(scale / output) for scale in scales]
    shift = 20 - (int(np.frexp(max(ratios))[1]) - 1)
    return [int(np.rint(np.ldexp(np.float64(ratio), shift))) for ratio in ratios], shift


def _reference(step: spec.Step, operands: list[np.ndarray]) -> np.ndarray:
    terms = [v.astype(np.int64) - t.zero_point for v, t in zip(operands, step.inputs, strict=True)]
    scales = [t.scale for t in step.inputs]
    if step.xnnpack:
        return step.finish(_sum_of_xnnpack(terms, scales, step.output.scale))
    sums = _sum_of_builtin(terms, scales, step.output.scale, scale_away)
    if step.kernels.sixteens:
        whole = sums.size // 16 * 16
        vectors = _sum_of_builtin(terms, scales, step.output.scale, scale_on_avx2)
        sums.reshape(-1)[:whole] = vectors.reshape(-1)[:whole]
    return step.finish(sums)


def _sum_of_xnnpack(
    terms: list[np.ndarray], scales: list[np.float32], output: np.float32
) -> np.ndarray:
    (first, second), shift = add_multipliers(scales, output)
    return (terms[0] * first + terms[1] * second + (1 << (shift - 1))) >> shift


def _sum_of_builtin(
    terms: list[np.ndarray], scales: list[np.float32], output: np.float32, first: Rescale
) -> np.ndarray:
    largest = 2.0 * max(float(scale) for scale in scales)
    shifted = [
        first(term << 20, np.array([float(scale) / largest]))
        for term, scale in zip(terms, scales, strict=True)
    ]
    return scale_away(shifted[0] + shifted[1], np.array([largest / (2**20 * float(output))]))


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


def _rounding_error(step: spec.Step) -> float:
    output = step.output.scale
    ratios = [tensor.scale / output for tensor in step.inputs]
    if step.xnnpack:
        _, shift = add_multipliers([t.scale for t in step.inputs], output)
        factors = len(ratios) * 255 * 0.5 * 2.0**-shift
        return 0.5 + factors + sum(255 * float(r) * 2.0**-23 for r in ratios)
    return 1.0 + sum(255 * float(r) * 2.0**-18 for r in ratios)


SPEC = spec.OperatorSpec(
    kind="ADD",
    schema=OperatorSchema(Elementwise, 11, "AddOptions", (activation_field(0),), ignored=(1,)),
    check=_check,
    xnnpack=_xnnpack,
    reference=_reference,
    macs=spec.no_macs,
    keeps=spec.Keeps.NOTHING,
    obstacle=spec.integers_only,
    interval=_interval,
    norm=spec.non_expansive,
    stacked=False,
    rounding_error=_rounding_error,
    twin="add_twin",
)
