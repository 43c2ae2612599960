"""The affine int8 grid that a quantized tensor lives on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

INT8_MIN, INT8_MAX = -128, 127


@dataclass(frozen=True)
class Grid:
    """An affine grid: ``real = scale * (q - zero_point)`` for integers ``qmin <= q <= qmax``.

    Attributes:
        scale: step of the grid, a float32 value held as a Python float.
        zero_point: the int8 integer that stands for 0.0.
        qmin: smallest int8 integer in use.
        qmax: largest int8 integer in use.
    """

    scale: float
    zero_point: int
    qmin: int = INT8_MIN
    qmax: int = INT8_MAX


def nudged_grid(low: float, high: float, bits: int) -> Grid:
    """Return the grid that TensorFlow's fake-quantize uses for a range.

    The range is moved a little so that 0.0 is on the grid, in float32 as the kernel of
    ``tf.quantization.fake_quant_with_min_max_vars`` does it ("nudging").

    Args:
        low: lower end of the range, <= 0.
        high: upper end of the range, >= 0 and > ``low``.
        bits: 1..8.

    Raises:
        ValueError: the range is empty or does not contain 0.
    """
    if not low <= 0.0 <= high or low == high:
        raise ValueError(f"a range must contain 0 and not be empty, got [{low}, {high}]")
    levels = np.float32(2**bits - 1)
    scale = (np.float32(high) - np.float32(low)) / levels
    zero = np.float32(0) - np.float32(low) / scale
    nudged = int(np.clip(np.floor(zero + np.float32(0.5)), 0, levels))
    return Grid(float(scale), INT8_MIN + nudged, INT8_MIN, INT8_MIN + int(levels))


def zero_aligned_range(low: float, high: float, bits: int) -> tuple[float, float]:
    """Return the least range that contains ``[low, high]`` and has 0 on its grid as it is.

    `nudged_grid` moves a range by up to half a step to get 0 onto the grid. A grid of images, which
    are on one of their own, may then lie half-way between: [-1, 1] at 8 bits would put every pixel
    ``k / 127.5 - 1`` on a tie. Widened instead, by at most one part in 2**bits, it does not.

    Args:
        low: lower end, <= 0.
        high: upper end, >= 0 and > ``low``.
        bits: 2..8.
    """
    if low == 0.0 or high == 0.0:
        return low, high
    levels = 2**bits - 1
    zero = min(max(int(np.floor(0.5 - low * levels / (high - low))), 1), levels - 1)
    step = max(-low / zero, high / (levels - zero))
    return -zero * step, (levels - zero) * step
