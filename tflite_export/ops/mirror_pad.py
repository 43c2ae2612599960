"""MIRROR_PAD: what is inside, mirrored around every dimension but the batch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tflite_export.ir.graph import MirrorPadding, Operator, Tensor
from tflite_export.ir.schema import MIRRORS, OperatorSchema, OptionField
from tflite_export.ops import spec
from tflite_export.ops.checks import require
from tflite_export.ops.padding import check_amounts, padded


def _check(operator: Operator, operands: spec.Operands, output: Tensor) -> spec.Shape:
    """A mirror is no deeper than what it mirrors."""
    options = operator.options
    assert isinstance(options, MirrorPadding)
    shape, pairs = check_amounts(operands, output)
    require(output.dtype != "uint8", "uint8 operands")
    edge = 1 if options.mode == "REFLECT" else 0
    deep = any(pair.max() > size - edge for size, pair in zip(shape[1:], pairs[1:], strict=True))
    require(not deep, f"amounts {pairs[1:].tolist()} mirror more than {shape[1:]}")
    return padded(shape, pairs)


def _reference(step: spec.Step, operands: list[np.ndarray]) -> np.ndarray:
    options = step.operator.options
    assert isinstance(options, MirrorPadding)
    mode: Any = options.mode.lower()
    return np.pad(operands[0], operands[1].astype(int), mode)


def _norm(step: spec.Step) -> float:
    """How often the entry that is mirrored most is in the result."""
    options = step.operator.options
    assert isinstance(options, MirrorPadding)
    mode: Any = options.mode.lower()
    sizes, amounts = step.inputs[0].shape[1:], np.asarray(step.inputs[1].data)[1:]
    copies = [
        int(np.bincount(np.pad(np.arange(size), pair, mode)).max())
        for size, pair in zip(sizes, amounts, strict=True)
    ]
    return math.sqrt(math.prod(copies)) * spec.ROUND_UP


SPEC = spec.OperatorSpec(
    kind="MIRROR_PAD",
    schema=OperatorSchema(
        MirrorPadding, 77, "MirrorPadOptions", (OptionField("mode", 0, "int8", choices=MIRRORS),)
    ),
    check=_check,
    xnnpack=spec.unless_int4_or_int16,
    reference=_reference,
    macs=spec.no_macs,
    keeps=spec.Keeps.INTEGERS,
    obstacle=spec.any_type,
    interval=spec.increasing(_reference),
    norm=_norm,
    stacked=False,
    several=False,
    rounding_error=spec.exact,
    int16_in=(),
    missing_in=(),
    twin="mirror_pad_twin",
)
