"""What an integer network may be fed: one check for runtime, twin, certificates and attacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tflite_export.ir.affine import dequantize
from tflite_export.ir.graph import DTYPES, INTEGER_RANGES, IntegerGraph, Tensor


def check_inputs(x: Any, graph: IntegerGraph) -> list[np.ndarray]:
    """Return the inputs of a graph as arrays, or say what is wrong with them.

    Args:
        x: an array ``(n, ...)``, on the scale of the training data or integers on the input's grid
            in its own type; a list of arrays for several inputs.
        graph: the network.

    Returns:
        One array for each input, in the type that was given.

    Raises:
        ValueError: another number of inputs, samples or dimensions than the graph takes, NaN, or
            images on another scale than those trained on.
    """
    tensors = [graph.tensors[index] for index in graph.inputs]
    given = list(x) if len(tensors) > 1 else [x]
    if len(given) != len(tensors):
        raise ValueError(f"{len(given)} inputs given, the model takes {len(tensors)}")
    arrays = [np.asarray(value) for value in given]
    for array, tensor, index in zip(arrays, tensors, graph.inputs, strict=True):
        check_shape(array.shape, tensor)
        if len(array) != len(arrays[0]):
            raise ValueError(f"inputs of {len(arrays[0])} and {len(array)} samples")
        check_range(array, tensor, grid_of(graph, index))
    return arrays


def check_shape(shape: Sequence[int | None], tensor: Tensor) -> None:
    """Say whether a batch has the shape of an input.

    Args:
        shape: of the batch; None where a size is not known yet.
        tensor: the input.

    Raises:
        ValueError: naming both shapes.
    """
    check_sizes(shape, tensor.name, tensor.shape)


def check_sizes(shape: Sequence[int | None], name: str, wanted: Sequence[int | None]) -> None:
    """Say whether a batch has the sizes that an input declares.

    Args:
        shape: of the batch; None where a size is not known yet.
        name: of the input.
        wanted: its shape, the batch first; None where a size is open.

    Raises:
        ValueError: naming both shapes.
    """
    fits = len(shape) == len(wanted) and all(
        None in (size, other) or size == other
        for size, other in zip(shape[1:], wanted[1:], strict=True)
    )
    if not fits:
        sizes = ", ".join(map(str, ("n", *wanted[1:])))
        raise ValueError(f"input {name!r} has shape {tuple(shape)}, expected ({sizes})")


def check_range(array: np.ndarray, tensor: Tensor, grid: Tensor | None = None) -> None:
    """Refuse NaN, and images on another scale than those trained on: they saturate, silently.

    Integers, in another type than the input's own, must lie on the grid. Floats may leave it, as
    noise does, but not by fifty times its width, as bytes made floats do.

    Args:
        array: the images.
        tensor: the input, for the message.
        grid: the tensor with the input's grid; None: the input itself.

    Raises:
        ValueError: naming the range of the images and the range that the input takes.
    """
    grid = tensor if grid is None else grid
    if np.issubdtype(array.dtype, np.floating) and np.isnan(array).any():
        raise ValueError(
            f"input {tensor.name!r} holds NaN, which no integer stands for; clean the data first"
        )
    if grid.quantization is None or array.dtype == DTYPES[grid.dtype] or array.size == 0:
        return
    low, high = (float(x) for x in dequantize(np.array(INTEGER_RANGES[grid.dtype]), grid))
    room = float(grid.scale) if np.issubdtype(array.dtype, np.integer) else 50 * (high - low)
    least, most = float(array.min()), float(array.max())
    finite = np.isfinite([least, most]).all()
    if finite and (least < low - room or most > high + room):
        raise ValueError(
            f"input {tensor.name!r} takes values from {low:.4g} to {high:.4g}, got {least:.4g} to "
            f"{most:.4g}: scale the images as those trained on (bytes are usually divided by 255)"
        )


def grid_of(graph: IntegerGraph, index: int) -> Tensor:
    """Return the tensor with an input's grid: itself, or what a QUANTIZE makes of floats."""
    if graph.tensors[index].quantization is None:
        for operator in graph.operators:
            if operator.kind == "QUANTIZE" and operator.inputs == (index,):
                return graph.tensors[operator.outputs[0]]
    return graph.tensors[index]
