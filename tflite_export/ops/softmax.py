"""SOFTMAX: probabilities in units of 1/256, from a table of exponentials."""

from __future__ import annotations

import numpy as np

from tflite_export.ir.graph import INTEGER_RANGES, Operator, Softmax, Tensor
from tflite_export.ir.schema import OperatorSchema, OptionField
from tflite_export.ops import gemmlowp, spec
from tflite_export.ops.checks import operands_of, quantized_or_float, require

_SMALLEST_LOGIT_STEP = 2.0**-25
"""Fixed-point softmax counts in 2**-26; it ends the process for a multiplier of at most 1."""

SMALLEST_SUM = 1e-280
"""Sums of exponentials below this may have lost their digits to underflow."""


def _check(operator: Operator, operands: spec.Operands, output: Tensor) -> spec.Shape:
    options = operator.options
    assert isinstance(options, Softmax)
    (source,) = operands_of(operands, 1, 1)
    require(0.0 < options.beta <= 1024.0, f"beta is {options.beta}")
    for tensor in (source, output):
        quantized_or_float(tensor)
    require(
        source.dtype == output.dtype and source.dtype != "uint8",
        f"{source.dtype} to {output.dtype}",
    )
    require(1 <= len(source.shape) <= 4, f"{len(source.shape)} dimensions, expected up to 4")
    if output.dtype == "int8":
        step = options.beta * float(source.scale)
        require(
            step >= _SMALLEST_LOGIT_STEP,
            f"beta times scale is {step:.3g}, kernels take {_SMALLEST_LOGIT_STEP:.3g} or more",
        )
        fixed = bool(output.scale == np.float32(1 / 256)) and output.zero_point == -128
        require(fixed, "the result must have scale 1/256 and zero point -128")
    return source.shape


def softmax_table(scale: np.float32, beta: float) -> np.ndarray:
    """``exp(-scale * beta * d)`` for the distances ``d = 0..255`` to the largest logit, float32."""
    factor = np.float32(-np.float32(scale) * np.float32(beta))
    distances = np.arange(256, dtype=np.float32)
    return np.exp((factor * distances).astype(np.float64)).astype(np.float32)


def fixed_point_table(step: spec.Step) -> np.ndarray:
    """The same as the reference kernels have it: int64, in fixed point.

    Raises:
        ValueError: there are more classes than their sums have room for.
    """
    options, source = step.operator.options, step.inputs[0]
    assert isinstance(options, Softmax)
    if source.shape[-1] > gemmlowp.MOST_CLASSES:
        raise ValueError(
            f"operator SOFTMAX, which computes {step.output.name!r}: the sums of "
            f"{source.shape[-1]} classes may overflow in the reference kernels; take the kernels "
            "'default' or 'builtin'"
        )
    return gemmlowp.softmax_exponentials(float(source.scale) * float(np.float32(options.beta)))


def _reference(step: spec.Step, operands: list[np.ndarray]) -> np.ndarray:
    options = step.operator.options
    assert isinstance(options, Softmax)
    values = operands[0].astype(np.int64)
    distances = values.max(axis=-1, keepdims=True) - values
    if step.kernels.divides:
        return step.finish(gemmlowp.softmax(fixed_point_table(step)[distances]))
    table = softmax_table(step.inputs[0].scale, options.beta)
    weights = table[distances]
    total = np.zeros(weights.shape[:-1], np.float32)
    for channel in range(weights.shape[-1]):
        total += weights[..., channel]
    inverse = np.float32(1.0) / (total * step.output.scale)
    scaled = weights * inverse[..., None]
    return step.finish(np.floor(scaled.astype(np.float64) + 0.5).astype(np.int64))


def _interval(step: spec.Step, boxes: list[spec.Box]) -> spec.Box:
    """Bound each probability: largest where its logit is high and all others are low.

    The kernel's float32 arithmetic is not quite monotone, so one step is given up on each side.
    """
    options = step.operator.options
    assert isinstance(options, Softmax)
    factor = float(step.inputs[0].scale) * options.beta
    low, high = (np.asarray(side, np.float64) * factor for side in boxes[0])
    shift = np.max(high, axis=-1, keepdims=True)
    ends = []
    for mine, others, sign in ((low, high, -1), (high, low, 1)):
        own, rest = np.exp(mine - shift), np.exp(others - shift)
        # the sum of all entries but each one, without a cancellation
        total = own + rest @ (1.0 - np.eye(rest.shape[-1]))
        known = total > SMALLEST_SUM
        # where all exponentials underflow, a probability may be anything from 0 to 1
        share = np.where(known, own / np.where(known, total, 1.0), max(sign, 0))
        steps = np.floor(share / float(step.output.scale) + 0.5) + sign
        ends.append(np.clip(steps + step.output.zero_point, *INTEGER_RANGES[step.output.dtype]))
    return step.typed(ends[0]), step.typed(ends[1])


def _norm(step: spec.Step) -> float:
    """Half of beta: the norm of ``diag(p) - p p^T`` is at most 1/2, as two equal classes have."""
    options = step.operator.options
    assert isinstance(options, Softmax)
    return 0.5 * options.beta


def _rounding_error(step: spec.Step) -> float:
    """One: a probability of 1 is stored as 255/256."""
    del step
    return 1.0


SPEC = spec.OperatorSpec(
    kind="SOFTMAX",
    schema=OperatorSchema(Softmax, 9, "SoftmaxOptions", (OptionField("beta", 0, "float32"),)),
    check=_check,
    xnnpack=spec.unless_int4_or_int16,
    reference=_reference,
    macs=spec.no_macs,
    keeps=spec.Keeps.NOTHING,
    obstacle=spec.integers_only,
    interval=_interval,
    norm=_norm,
    stacked=False,
    several=False,
    rounding_error=_rounding_error,
    int16_in=(),
    missing_in=(),
    twin="softmax_twin",
)
