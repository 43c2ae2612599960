"""From real numbers to the integers of an affine grid and back, as the kernels do it."""

from __future__ import annotations

import numpy as np

from tflite_export.ir.graph import DTYPES, INTEGER_RANGES, Tensor


def numbers(values: np.ndarray) -> np.ndarray:
    """The values as float32.

    Raises:
        ValueError: if one is not a number.
    """
    reals = np.asarray(values, np.float32)
    if np.isnan(reals).any():
        raise ValueError("the input holds NaN, which no integer stands for; clean the data first")
    return reals


def quantize(values: np.ndarray, grid: Tensor) -> np.ndarray:
    """Floats to integers: ``clip(rint(x * (1 / scale)) + zero_point)``, in float32.

    Args:
        values: real numbers, any shape. Infinities go to the ends of the range.
        grid: a tensor with one scale and zero point.

    Returns:
        Integers in the grid's type.

    Raises:
        ValueError: if a value is not a number.
    """
    reals = numbers(values)
    low, high = INTEGER_RANGES[grid.dtype]
    steps = reals * (np.float32(1.0) / grid.scale)
    bounded = np.clip(steps, low - grid.zero_point, high - grid.zero_point)
    return (np.rint(bounded) + grid.zero_point).astype(DTYPES[grid.dtype])


def quantize_by_division(values: np.ndarray, grid: Tensor) -> np.ndarray:
    """`quantize` as the reference kernel does: ``x / scale`` in float32, ties away from zero.

    Args:
        values: as for `quantize`.
        grid: as for `quantize`.

    Returns:
        Integers in the grid's type.

    Raises:
        ValueError: if a value is not a number.
    """
    low, high = INTEGER_RANGES[grid.dtype]
    steps = (numbers(values) / grid.scale).astype(np.float64)
    rounded = np.sign(steps) * np.floor(np.abs(steps) + 0.5)
    return np.clip(rounded + grid.zero_point, low, high).astype(DTYPES[grid.dtype])


def dequantize(integers: np.ndarray, grid: Tensor) -> np.ndarray:
    """Integers to floats: ``scale * (q - zero_point)``, float32."""
    return grid.scale * (integers.astype(np.int32) - grid.zero_point).astype(np.float32)


def constant_values(tensor: Tensor) -> np.ndarray:
    """The integers of a symmetric constant times their scales, of the tensor or of each channel.

    Args:
        tensor: quantized weights.

    Returns:
        float64, in the tensor's layout.

    Raises:
        ValueError: it is not a quantized constant.
    """
    grid = tensor.quantization
    if tensor.data is None or grid is None:
        raise ValueError(f"the weights {tensor.name!r} are not a quantized constant")
    shape = [1] * tensor.data.ndim
    shape[grid.axis] = grid.scale.size
    return tensor.data.astype(np.float64) * grid.scale.astype(np.float64).reshape(shape)
