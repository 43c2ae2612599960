"""How integer kernels turn an accumulator into an output integer, in NumPy.

The kernels in use differ on a few integers in ten thousand, by one step:

- XNNPACK, the default on phones and computers, multiplies in float32 and rounds once, ties to even.
- The built-in and reference kernels (also TensorFlow Lite Micro) multiply by a 31-bit fixed-point
  number and shift, rounding twice (Jacob et al. 2018, arXiv 1712.05877, section 2.2). Those written
  with vector instructions round ties upward, the scalar ones away from zero.

Each function here was found equal to its kernels on every one of millions of random integers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

Rescale = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""From accumulators, channels last, and factors to whole steps of the output."""


def requantization_scale(
    input_scale: np.float32, weight_scale: np.ndarray, output_scale: np.float32
) -> np.ndarray:
    """XNNPACK's factor, ``s_in * s_w / s_out``, each step rounded to float32.

    Args:
        input_scale: step of the input grid.
        weight_scale: steps of the weight grids, shape ``(1,)`` or ``(channels,)``.
        output_scale: step of the output grid.

    Returns:
        float32, the shape of ``weight_scale``.
    """
    product = np.float32(input_scale) * np.asarray(weight_scale, np.float32)
    return (product / np.float32(output_scale)).astype(np.float32)


def weighted_factors(
    input_scale: np.float32,
    weight_scale: np.ndarray,
    output_scale: np.float32,
    fixed: Rescale,
    dense: bool,
) -> np.ndarray:
    """The real factors that built-in and reference kernels make of the scales.

    With one scale for all weights, fixed-point dense kernels multiply the scales of input and
    weights in float32; all others compute in float64.

    Args:
        input_scale: step of the input grid.
        weight_scale: steps of the weight grids, ``(1,)`` or ``(channels,)``.
        output_scale: step of the output grid.
        fixed: the rounding of the kernel.
        dense: the operator is ``FULLY_CONNECTED``.

    Returns:
        float64, the shape of ``weight_scale``.
    """
    if dense and weight_scale.size == 1 and fixed is not scale_once:
        products = (np.float32(input_scale) * weight_scale).astype(np.float64)
    else:
        products = np.float64(input_scale) * weight_scale.astype(np.float64)
    return products / np.float64(output_scale)


def scale_in_float32(accumulator: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """XNNPACK: ``rint(float32(accumulator) * scale)``, ties to even.

    Args:
        accumulator: integers of any type, channels last.
        scale: float32, broadcast against the channels.

    Returns:
        int64, before zero point and clamp.
    """
    return np.rint(accumulator.astype(np.float32) * scale.astype(np.float32)).astype(np.int64)


def fixed_point(real: float) -> tuple[int, int]:
    """A positive factor as ``multiplier * 2**(shift - 31)`` with a 31-bit multiplier.

    Returns:
        (multiplier, shift); ``(0, 0)`` for factors below 2**-32.
    """
    if real == 0.0:
        return 0, 0
    fraction, shift = math.frexp(real)
    multiplier = math.floor(fraction * 2**31 + 0.5)
    if multiplier == 2**31:
        multiplier, shift = multiplier // 2, shift + 1
    return (0, 0) if shift < -31 else (multiplier, shift)


def scale_away(accumulator: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Scalar fixed-point kernels: the two roundings take ties away from zero.

    Args:
        accumulator: integers, channels last.
        factors: float64 real factors, shape ``(1,)`` or ``(channels,)``.

    Returns:
        int64, before zero point and clamp.
    """
    return _away(accumulator, *_factors(factors))


def _away(
    accumulator: np.ndarray,
    multiplier: np.ndarray | int,
    left: np.ndarray | int,
    right: np.ndarray | int,
) -> np.ndarray:
    product = (accumulator.astype(np.int64) << left) * multiplier
    nudged = product + np.where(product >= 0, 1 << 30, 1 - (1 << 30))
    high = np.where(nudged >= 0, nudged >> 31, -((-nudged) >> 31))
    mask = (np.int64(1) << right) - 1
    return (high >> right) + ((high & mask) > (mask >> 1) + (high < 0))


def scale_upward(accumulator: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Vectorised fixed-point kernels: the two roundings take ties toward plus infinity.

    Arguments and result as in `scale_away`.
    """
    multiplier, left, right = _factors(factors)
    product = (accumulator.astype(np.int64) << left) * multiplier
    high = (product + (1 << 30)) >> 31
    return (high + ((np.int64(1) << right) >> 1)) >> right


def scale_in_eights(accumulator: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """The built-in depthwise kernel: whole eights by `scale_upward`, the rest `scale_away`.

    Arguments and result as in `scale_away`.
    """
    whole = factors.size // 8 * 8
    upward = scale_upward(accumulator[..., :whole], factors[:whole])
    away = scale_away(accumulator[..., whole:], factors[whole:])
    return np.concatenate([upward, away], axis=-1)


def scale_once(accumulator: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """The reference dense kernel: one product in float64, ties away from zero.

    Arguments and result as in `scale_away`.
    """
    products = accumulator.astype(np.float64) * factors
    return (np.sign(products) * np.floor(np.abs(products) + 0.5)).astype(np.int64)


def scale_wide(accumulator: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Kernels with sums of 64 bits: a multiplier of 15 bits, one rounding, ties upward.

    Arguments and result as in `scale_away`; for products of sums and factors below 2**31.
    """
    multiplier, shift = wide_multipliers(factors)
    return (accumulator.astype(np.int64) * multiplier + (np.int64(1) << (shift - 1))) >> shift


def wide_multipliers(factors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Multipliers of 15 bits and the right shifts behind them, int64, of real factors."""
    multiplier, left, right = _factors(factors)
    most = np.int64(0x7FFF)
    return np.minimum((multiplier + (1 << 15)) >> 16, most), 15 - left + right


def scale_on_avx2(accumulator: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """The built-in addition in vectors of sixteen: the high product is cut off, then ties go up.

    Arguments and result as in `scale_away`.
    """
    multiplier, left, right = _factors(factors)
    high = ((accumulator.astype(np.int64) << left) * multiplier) >> 31
    return (high + ((np.int64(1) << right) >> 1)) >> right


def scale_and_cut(accumulator: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """The built-in addition of one repeated entry: the high product rounds up, the shift cuts off.

    Arguments and result as in `scale_away`.
    """
    multiplier, left, right = _factors(factors)
    product = (accumulator.astype(np.int64) << left) * multiplier
    return ((product + (1 << 30)) >> 31) >> right


def _factors(factors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Multipliers, left shifts and right shifts of real factors."""
    pairs = np.array([fixed_point(float(factor)) for factor in factors], np.int64).reshape(-1, 2)
    return pairs[:, 0], np.maximum(pairs[:, 1], 0), np.maximum(-pairs[:, 1], 0)


def mean_multiplier(real: float, count: int) -> tuple[int, int]:
    """The built-in kernels' factor of a mean: that of the scales, divided by ``count`` in integers.

    Args:
        real: input scale over output scale, positive.
        count: how many integers the mean is of.

    Returns:
        (multiplier, shift) as of `fixed_point`; the division truncates.
    """
    multiplier, shift = fixed_point(real)
    extra = min(count.bit_length() - 1, 32, 31 + shift)
    return (multiplier << extra) // count, shift - extra


def scale_mean(sums: np.ndarray, real: float, count: int) -> np.ndarray:
    """Built-in and reference kernels of a mean: one fixed-point factor, ties away from zero.

    Args:
        sums: sums of ``count`` integers, the zero point taken off.
        real: input scale over output scale.
        count: how many integers the mean is of.

    Returns:
        int64, before zero point and clamp.
    """
    multiplier, shift = mean_multiplier(real, count)
    return _away(sums, multiplier, max(shift, 0), max(-shift, 0))


def mean_in_float32(
    source: tuple[np.float32, int], target: tuple[np.float32, int], count: int
) -> tuple[np.float32, np.float32]:
    """XNNPACK's factor and offset of a mean, each step rounded to float32.

    Both zero points are in the offset, which is not a whole number: ``rint(f32(f32(sum) * factor) +
    offset)`` is the output integer, ``sum`` that of the stored integers.

    Args:
        source: scale and zero point of the input.
        target: scale and zero point of the output.
        count: how many integers the mean is of.

    Returns:
        (factor, offset), float32.
    """
    factor = np.float32(source[0] / target[0]) * (np.float32(1.0) / np.float32(count))
    return factor, np.float32(target[1]) - np.float32(count * source[1]) * factor


def round_half_away_array(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """``round(numerator / denominator)`` in integers, ties away from zero.

    Args:
        numerator: integers.
        denominator: positive integers, broadcast against the numerator.
    """
    magnitude = (2 * np.abs(numerator) + denominator) // (2 * denominator)
    return np.where(numerator < 0, -magnitude, magnitude)
