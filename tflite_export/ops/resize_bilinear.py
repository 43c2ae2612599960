"""RESIZE_BILINEAR: an image of another size, each pixel mixed of up to four of the source."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tflite_export.ir.graph import Operator, Tensor
from tflite_export.ir.schema import OperatorSchema, OptionField
from tflite_export.ops import spec
from tflite_export.ops.checks import operands_of, require
from tflite_export.ops.resizing import Resizing, check_resizing

_BITS, _BITS_OF_XNNPACK = 10, 11


@dataclass(frozen=True)
class Mix:
    """What the pixels along one axis of the result are mixed of.

    Attributes:
        first: the pixel of the source before each, int64 ``(size,)``.
        second: the one behind it.
        share: of the second, in whole multiples of ``1 / unit``.
        unit: the sum of the two shares.
    """

    first: np.ndarray
    second: np.ndarray
    share: np.ndarray
    unit: int


def _in_fixed_point(size: int, result: int, options: Resizing) -> Mix:
    """The built-in and reference kernels' arithmetic; a position has ten fraction bits."""
    unit = 1 << _BITS
    corners = options.align_corners and result > 1
    steps = result - corners
    factor = (unit * (size - corners) + steps // 2) // steps
    places = np.arange(result) * factor
    if options.half_pixel_centers:
        places += factor // 2 - unit // 2
    first = np.maximum(places, 0) // unit
    second = np.minimum(-(-np.maximum(places, 0) // unit), size - 1)
    # Before the first pixel both are that one.
    return Mix(first, second, np.where(first == second, 0, places - unit * first), unit)


def in_float32(size: int, result: int, options: Resizing) -> Mix:
    """XNNPACK's arithmetic: positions in float32, shares of eleven bits."""
    corners = options.align_corners and result > 1
    factor = np.float32(size - corners) / np.float32(result - corners)
    places = np.arange(result).astype(np.float32) * factor
    if options.half_pixel_centers:
        places += np.float32(0.5) * factor - np.float32(0.5)
        places = np.clip(places, np.float32(0), np.float32(size - 1))
    first = places.astype(np.int64)
    unit = 1 << _BITS_OF_XNNPACK
    share = np.rint((places - first.astype(np.float32)) * np.float32(unit)).astype(np.int64)
    return Mix(first, np.minimum(first + 1, size - 1), share, unit)


def mixes(step: spec.Step) -> tuple[Mix, Mix]:
    """What the rows and the columns of the result are mixed of."""
    options = step.operator.options
    assert isinstance(options, Resizing)
    along = in_float32 if step.xnnpack else _in_fixed_point
    source, output = step.inputs[0], step.output
    rows, columns = (along(source.shape[i], output.shape[i], options) for i in (1, 2))
    return rows, columns


def _check(operator: Operator, operands: spec.Operands, output: Tensor) -> spec.Shape:
    shape, options = check_resizing(operator, operands, output), operator.options
    assert isinstance(options, Resizing)
    source, _ = operands_of(operands, 2, 2)
    require(output.dtype == "int8", f"type {output.dtype}; only int8 is known")
    for count, result in zip(source.shape[1:3], shape[1:3], strict=True):
        reached = int(_in_fixed_point(count, result, options).first.max())
        require(
            reached < count,
            f"{count} pixels become {result}: built-in kernels would read pixel {reached}, beyond "
            "the image",
        )
    return shape


def _reference(step: spec.Step, operands: list[np.ndarray]) -> np.ndarray:
    rows, columns = mixes(step)
    values = operands[0].astype(np.int64)
    for axis, mix in ((1, rows), (2, columns)):
        shares = mix.share.reshape(-1, *(1,) * (3 - axis))
        first, second = (values.take(places, axis) for places in (mix.first, mix.second))
        values = first * (mix.unit - shares) + second * shares
    whole = rows.unit * columns.unit
    if step.xnnpack:
        mixed = (values + whole // 2) // whole
    else:
        mixed = np.sign(values) * ((np.abs(values) + whole // 2) // whole)
    return step.finish(mixed - step.output.zero_point)


def _norm(step: spec.Step) -> float:
    """The product over the axes of the root of how much of a pixel is in the result at most.

    Rows of the axis' matrix sum to 1, so the root of its largest sum of a column bounds its norm.
    """
    product = 1.0
    for mix, size in zip(mixes(step), step.inputs[0].shape[1:3], strict=True):
        amounts = np.bincount(mix.first, mix.unit - mix.share, size)
        amounts += np.bincount(mix.second, mix.share, size)
        product *= float(amounts.max()) / mix.unit
    return math.sqrt(product) * spec.ROUND_UP


SPEC = spec.OperatorSpec(
    kind="RESIZE_BILINEAR",
    schema=OperatorSchema(
        Resizing,
        15,
        "ResizeBilinearOptions",
        (OptionField("align_corners", 2, "bool"), OptionField("half_pixel_centers", 3, "bool")),
    ),
    check=_check,
    xnnpack=spec.unless_int4_or_int16,
    reference=_reference,
    macs=spec.no_macs,
    keeps=spec.Keeps.NOTHING,
    obstacle=spec.integers_only,
    interval=spec.increasing(_reference),
    norm=_norm,
    stacked=False,
    several=False,
    rounding_error=lambda step: 0.5,
    int16_in=(),
    missing_in=(),
    twin="resize_bilinear_twin",
)
