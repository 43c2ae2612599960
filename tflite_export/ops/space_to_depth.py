"""SPACE_TO_DEPTH: the pixels of each block as channels of one pixel."""

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
    require(
        height % side == width % side == 0, f"{height} x {width} pixels in blocks of {side} a side"
    )
    return (batch, height // side, width // side, channels * side * side)


def _reference(step: spec.Step, operands: list[np.ndarray]) -> np.ndarray:
    return blocks.to_depth(operands[0], blocks.side_of(step.operator))


SPEC = moving.moving_spec(
    "SPACE_TO_DEPTH",
    OperatorSchema(blocks.Blocks, 19, "SpaceToDepthOptions", blocks.FIELDS),
    _check,
    _reference,
    norm=spec.non_expansive,
    stacked=False,
    several=False,
)
