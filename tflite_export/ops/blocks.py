"""What SPACE_TO_DEPTH and DEPTH_TO_SPACE share: square blocks of pixels that become channels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tflite_export.ir.graph import Operator, Options
from tflite_export.ir.schema import OptionField
from tflite_export.ops.checks import LARGEST_STEP, require


@dataclass(frozen=True)
class Blocks(Options):
    """Options of ``SPACE_TO_DEPTH`` and ``DEPTH_TO_SPACE``: pixels along a side of a block."""

    block_size: int = 0


FIELDS = (OptionField("block_size", 0, "int32"),)


def side_of(operator: Operator) -> int:
    """The pixels along a side of a block."""
    assert isinstance(operator.options, Blocks)
    side = operator.options.block_size
    require(1 <= side <= LARGEST_STEP, f"blocks of {side} pixels a side")
    return side


def to_depth(image: np.ndarray, side: int) -> np.ndarray:
    """The pixels of each block as channels, row by row."""
    count, height, width, channels = image.shape
    parted = image.reshape(count, height // side, side, width // side, side, channels)
    mixed = parted.transpose(0, 1, 3, 2, 4, 5)
    return mixed.reshape(count, height // side, width // side, side * side * channels)


def to_space(image: np.ndarray, side: int) -> np.ndarray:
    """The channels of each pixel as a block."""
    count, height, width, channels = image.shape
    deep = channels // (side * side)
    mixed = image.reshape(count, height, width, side, side, deep).transpose(0, 1, 3, 2, 4, 5)
    return mixed.reshape(count, height * side, width * side, deep)
