"""What the operators that resize images share."""

from __future__ import annotations

from dataclasses import dataclass

from tflite_export.ir.graph import Operator, Options, Tensor
from tflite_export.ops import spec
from tflite_export.ops.checks import LARGEST_STEP, image, operands_of, require, same_grid


@dataclass(frozen=True)
class Resizing(Options):
    """Where the pixels of a resized image lie in the other.

    Attributes:
        align_corners: the centres of the corner pixels stay where they are.
        half_pixel_centers: pixels lie at their centres; else at their corners.
    """

    align_corners: bool = False
    half_pixel_centers: bool = False


def check_resizing(operator: Operator, operands: spec.Operands, output: Tensor) -> spec.Shape:
    """Return the shape of the result.

    Raises:
        ValueError: the operator does not resize an image to a constant size.
    """
    options = operator.options
    assert isinstance(options, Resizing)
    source, size = operands_of(operands, 2, 2)
    same_grid([source, output])
    batch, _, _, channels = image(source)
    require(not source.is_constant, "the image is a constant")
    require(
        size.dtype == "int32" and size.data is not None and size.shape == (2,),
        "the size is not a constant of two int32",
    )
    assert size.data is not None
    height, width = (int(number) for number in size.data)
    require(
        1 <= height <= LARGEST_STEP and 1 <= width <= LARGEST_STEP,
        f"the size ({height}, {width}) is out of range",
    )
    require(
        not (options.align_corners and options.half_pixel_centers),
        "align_corners and half_pixel_centers exclude each other",
    )
    return (batch, height, width, channels)
