"""DEPTH_TO_SPACE: the channels of each pixel as a block of pixels."""

from __future__ import annotations

import numpy as np

from tflite_export.ir.graph import Operator, Tensor
from tflite_export.ir.schema import OperatorSchema
from tflite_export.ops import blocks, moving, spec
from tflite_export.ops.checks import image, operands_of, require


def _check(operator: Operator, operands: spec.Operands, output: Tensor) -> spec.Shape:
    (source,) = operands_of(operands, 1, 1)
    moving.check_moved(source, output)
    batch, height, width, channels = image(source)
    side = blocks.side_of(operator)
    require(channels % (side * side) == 0, f"{channels} channels in blocks of {side} a side")
    return (batch, height * side, width * side, channels // (side * side))


def _reference(step: spec.Step, operands: list[np.ndarray]) -> np.ndarray:
    return blocks.to_space(operands[0], blocks.side_of(step.operator))


SPEC = moving.moving_spec(
    "DEPTH_TO_SPACE",
    OperatorSchema(blocks.Blocks, 94, "DepthToSpaceOptions", blocks.FIELDS, version=1),
    _check,
    _reference,
    norm=spec.non_expansive,
    stacked=False,
    several=False,
)
