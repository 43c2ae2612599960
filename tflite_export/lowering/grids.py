"""Int8 grids: which one a result is on, and how an operator leaves just its integers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tfdq.grid import INT8_MAX, INT8_MIN, Grid
from tflite_export.ir.graph import Quantization, Tensor, activation_range
from tflite_export.ir.requantization import mean_in_float32

UNIT = 127
"""The weight that stands for 1 where an operator has no weights of its own."""

_TIE = 1e-4
_MOST_SUMS = 1 << 20
_MOST_MEAN = 1 << 16
_MEAN_FACTORS = (2.0**-16, 255.0)
_NUDGES = (0, *(sign * 2**power for power in range(10) for sign in (1, -1)))


def clamp_plan(target: Grid) -> tuple[Grid, str, Grid | None]:
    """How an int8 operator leaves exactly the integers ``target.qmin .. target.qmax``.

    Returns:
        (grid of the operator's result, its fused activation, grid of a change of grid behind it or
        None). The zero point of the result can differ from the one asked for: a range that ends
        below 127 is moved to end there.
    """
    tensor = Tensor("", (), "int8", Quantization.per_tensor(target.scale, target.zero_point))
    for activation in ("NONE", "RELU6", "RELU"):
        if activation_range(activation, tensor) == (target.qmin, target.qmax):
            return target, activation, None
    up = INT8_MAX - target.qmax
    moved = Grid(target.scale, target.zero_point + up, target.qmin + up, INT8_MAX)
    if target.qmin == target.zero_point:
        return moved, "RELU", None
    down = moved.qmin - INT8_MIN
    if not moved.zero_point <= INT8_MAX:
        raise ValueError(f"the range of {target} does not contain 0")
    last = Grid(target.scale, moved.zero_point - down, INT8_MIN, INT8_MAX - down)
    return replace(moved, qmin=INT8_MIN), "NONE", last


def ties_up(grid: Grid, count: int, target: Grid) -> int:
    """The bias, 0 or 1, that rounds means as training does, ties up.

    A mean of few-bit integers falls half-way between two steps far more often than chance has it.
    One unit of the bias, 1/127 of the distance of two sums, decides these; it is given where it
    decides more ties than it moves other sums.
    """
    sums = np.arange(
        (grid.qmin - grid.zero_point) * count, (grid.qmax - grid.zero_point) * count + 1
    )
    if sums.size > _MOST_SUMS:
        return 0
    steps = sums * (grid.scale / (count * target.scale))
    inside = (steps >= target.qmin - target.zero_point) & (steps <= target.qmax - target.zero_point)
    short = 0.5 - (steps[inside] - np.floor(steps[inside]))
    unit = grid.scale / (UNIT * count * target.scale)
    ties = np.abs(short) < _TIE
    moved = (short > _TIE) & (short <= unit + _TIE)
    return int(ties.sum() > moved.sum())


def mean_takes(grid: Grid, count: int, target: Grid) -> bool:
    """Whether the kernels of ``MEAN`` can bring means of ``count`` integers onto a grid."""
    first, activation, second = clamp_plan(target)
    factor = float(np.float32(grid.scale) / np.float32(target.scale))
    return (
        (first, activation, second) == (target, "NONE", None)
        and count <= _MOST_MEAN
        and _MEAN_FACTORS[0] <= factor <= _MEAN_FACTORS[1]
    )


def scale_of_means(grid: Grid, count: int, target: Grid) -> float:
    """The scale to declare for a ``MEAN``: the target's, or one a few float32 steps beside it.

    All sums that the integers in use can have are tried. A scale is the better the fewer of them
    round otherwise than in training (ties up), or differently on a processor that adds the offset
    without rounding the product before (a fused multiply-add, as on ARM).

    Args:
        grid: of the input, with the integers in use.
        count: how many integers the mean is of.
        target: grid of the result.

    Returns:
        A scale at most 512 float32 steps (relative 2**-14) from ``target.scale``.
    """
    if (grid.qmax - grid.qmin) * count >= _MOST_SUMS:
        return target.scale
    sums = np.arange(grid.qmin * count, grid.qmax * count + 1)
    steps = (sums - count * grid.zero_point) * (grid.scale / (count * target.scale))
    trained = np.clip(np.floor(steps + 0.5 + _TIE) + target.zero_point, INT8_MIN, INT8_MAX)
    source = np.float32(grid.scale), grid.zero_point
    best, least = target.scale, len(sums) * 2
    for nudge in _NUDGES:
        scale = float((np.float32(target.scale).view(np.int32) + np.int32(nudge)).view(np.float32))
        factor, offset = mean_in_float32(source, (np.float32(scale), target.zero_point), count)
        apart = np.float32(np.float32(sums) * factor) + offset
        fused = (sums * np.float64(factor) + np.float64(offset)).astype(np.float32)
        ours, theirs = (np.clip(np.rint(v), INT8_MIN, INT8_MAX) for v in (apart, fused))
        cost = int((ours != trained).sum() + (ours != theirs).sum())
        if cost < least:
            best, least = scale if nudge else target.scale, cost
        if not least:
            break
    return best


def units_for(factors: np.ndarray, offsets: np.ndarray, scale: float) -> np.ndarray:
    """For each channel the weight, 64..127, that brings its offset nearest to whole bias units.

    A layer without weights of its own may choose: ``factor * x`` is ``(factor / unit) * (unit *
    x)``, and the bias counts in units of ``scale * factor / unit``.

    Args:
        factors: float64, ``(channels,)``, not zero.
        offsets: float64, ``(channels,)``.
        scale: of the input.

    Returns:
        int64, ``(channels,)``.
    """
    units = np.arange(UNIT, UNIT // 2, -1)
    biases = offsets[:, None] * units / (np.abs(factors)[:, None] * scale)
    return units[np.argmin(np.round(np.abs(biases - np.rint(biases)), 6), axis=1)]


def covering(left: Grid, right: Grid) -> Grid:
    """An 8-bit grid that holds every sum of two tensors."""
    low = sum(g.scale * (g.qmin - g.zero_point) for g in (left, right))
    high = sum(g.scale * (g.qmax - g.zero_point) for g in (left, right))
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (INT8_MAX - INT8_MIN)
    return Grid(scale, int(np.clip(round(INT8_MIN - low / scale), INT8_MIN, INT8_MAX)))


def on_grid(grid: Grid, scale: float, zero_point: int | None) -> bool:
    """Whether a grid has this float32 scale, and this zero point if one is given."""
    same_scale = np.float32(grid.scale) == np.float32(scale)
    return bool(same_scale) and zero_point in (None, grid.zero_point)
