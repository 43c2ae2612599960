"""RESIZE_NEAREST_NEIGHBOR: an image of another size, each pixel the nearest one of the source."""

from __future__ import annotations

import numpy as np

from tflite_export.ir.graph import Options, Tensor
from tflite_export.ir.schema import OperatorSchema, OptionField
from tflite_export.ops import spec
from tflite_export.ops.resizing import Resizing, check_resizing


def nearest(size: int, result: int, options: Resizing) -> np.ndarray:
    """Return for each pixel along an axis of the result the one of the source, as LiteRT computes.

    Args:
        size: of the axis in the source.
        result: of the axis in the result.
        options: where the pixels lie.
    """
    corners = options.align_corners and result > 1
    factor = np.float32(size - corners) / np.float32(result - corners)
    places = np.arange(result).astype(np.float32)
    if options.half_pixel_centers:
        places += np.float32(0.5)
    places *= factor
    # Halves away from 0: the places are not negative.
    places = np.floor(places + np.float32(0.5)) if options.align_corners else np.floor(places)
    return np.minimum(places.astype(np.int64), size - 1)


def sources(
    source: Tensor, output: Tensor, options: Options | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows and the columns of the source that the result is made of."""
    assert isinstance(options, Resizing)
    rows, columns = (nearest(source.shape[i], output.shape[i], options) for i in (1, 2))
    return rows, columns


def _reference(step: spec.Step, operands: list[np.ndarray]) -> np.ndarray:
    rows, columns = sources(step.inputs[0], step.output, step.operator.options or Resizing())
    return operands[0][:, rows][:, :, columns]


def _norm(step: spec.Step) -> float:
    """How often the pixel that is repeated most often stands in the result, as a root."""
    repeats = [
        int(np.bincount(axis).max())
        for axis in sources(step.inputs[0], step.output, step.operator.options or Resizing())
    ]
    return float(np.sqrt(repeats[0] * repeats[1])) * spec.ROUND_UP


SPEC = spec.OperatorSpec(
    kind="RESIZE_NEAREST_NEIGHBOR",
    schema=OperatorSchema(
        Resizing,
        74,
        "ResizeNearestNeighborOptions",
        (OptionField("align_corners", 0, "bool"), OptionField("half_pixel_centers", 1, "bool")),
    ),
    check=check_resizing,
    xnnpack=lambda inputs, output: False,
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
    twin="resize_nearest_neighbor_twin",
)
