"""Exponential, softmax, logistic function and tanh in fixed point, as reference kernels compute.

The arithmetic is that of gemmlowp (``fixedpoint/fixedpoint.h``): raw 32-bit numbers with a number
of integer bits, products that round half away from zero. Arrays are int64 that hold 32-bit values.
"""

from __future__ import annotations

import numpy as np

from tflite_export.ir.requantization import fixed_point

_ONE = 2**31 - 1
"""1 with no integer bits, saturated."""
_LOWEST, _HIGHEST = -(2**31), 2**31 - 1

# exp(-2**e) with no integer bits, for e = -2, -1 ... 4.
_EXPONENTIALS = (1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242)
_EXP_OF_MINUS_EIGHTH = 1895147668
_THIRD = 715827883
DIVISION_START = (1515870810, -1010580540)
"""48/17 and -32/17 with two integer bits: the line that starts Newton's division."""


def product(a: np.ndarray, b: np.ndarray | int) -> np.ndarray:
    """Return the high half of a doubled product of 32-bit numbers, rounded half away from zero."""
    whole = a * b
    nudged = whole + np.where(whole >= 0, 1 << 30, 1 - (1 << 30))
    return np.minimum(np.where(nudged >= 0, nudged >> 31, -((-nudged) >> 31)), _HIGHEST)


def _shifted(a: np.ndarray, exponent: int) -> np.ndarray:
    """Return ``a * 2**exponent``, saturated, or rounded half away from zero."""
    if exponent >= 0:
        return np.clip(a << exponent, _LOWEST, _HIGHEST)
    return rounded_shift(a, -exponent)


def rounded_shift(a: np.ndarray, right: np.ndarray | int) -> np.ndarray:
    """Return ``a / 2**right``, rounded half away from zero."""
    mask = (np.int64(1) << right) - 1
    return (a >> right) + ((a & mask) > (mask >> 1) + (a < 0))


def _half_sum_with_one(a: np.ndarray) -> np.ndarray:
    total = a + _ONE
    return (total + np.where(total >= 0, 1, -1)) // 2


def exponential(a: np.ndarray, integer_bits: int) -> np.ndarray:
    """Return ``exp(a)`` with no integer bits.

    Args:
        a: negative numbers or 0, raw.
        integer_bits: that they have, at most 5.
    """
    fraction_bits = 31 - integer_bits
    quarter = 1 << (fraction_bits - 2)
    rest = (a & (quarter - 1)) - quarter
    x = _shifted(rest, integer_bits) + (1 << 28)
    x2 = product(x, x)
    x3, x4 = product(x2, x), product(x2, x2)
    series = _shifted(product(_shifted(x4, -2) + x3, _THIRD) + x2, -1)
    result = _EXP_OF_MINUS_EIGHTH + product(x + series, _EXP_OF_MINUS_EIGHTH)
    remainder = rest - a
    for exponent, factor in zip(range(-2, 5), _EXPONENTIALS, strict=True):
        if exponent < integer_bits:
            there = (remainder & (1 << (fraction_bits + exponent))) != 0
            result = np.where(there, product(result, factor), result)
    return np.where(a == 0, _ONE, result)


def _twice_inverse(a: np.ndarray) -> np.ndarray:
    """Return ``2 / (1 + a)`` with two integer bits; ``a`` in [0, 1] has none."""
    half_denominator = _half_sum_with_one(a)
    x = DIVISION_START[0] + product(half_denominator, DIVISION_START[1])
    for _ in range(3):
        error = (1 << 29) - product(half_denominator, x)
        x = x + _shifted(product(x, error), 2)
    return x


def _logistic(a: np.ndarray) -> np.ndarray:
    positive = _shifted(_twice_inverse(exponential(-np.abs(a), 4)), 1)
    result = np.where(a > 0, positive, _ONE - positive)
    return np.where(a == 0, 1 << 30, result)


def _tanh(a: np.ndarray) -> np.ndarray:
    # Twice the argument: the same raw number with one integer bit more.
    magnitude = _shifted(_twice_inverse(exponential(-np.abs(a), 5)) - (1 << 29), 2)
    return np.where(a == 0, 0, np.where(a < 0, -magnitude, magnitude))


def _sixteenths(centred: np.ndarray, scale: np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Return integers times their scale with four integer bits, and which lie beyond these."""
    multiplier, shift = fixed_point(float(scale) * 2.0**27)
    radius = int(np.floor((2**4 - 1) * 2.0 ** (31 - 4) / 2.0**shift))
    left, right = max(shift, 0), max(-shift, 0)
    inside = np.clip(centred, -radius, radius)
    raw = _shifted(product(inside << left, multiplier), -right)
    return raw, np.abs(centred) >= radius


def logistic(centred: np.ndarray, scale: np.float32) -> np.ndarray:
    """Return 256 times the logistic function of scaled integers, rounded.

    Args:
        centred: integers counted from the zero point.
        scale: their step.
    """
    raw, beyond = _sixteenths(centred, scale)
    return np.where(beyond, np.where(centred > 0, 256, 0), _shifted(_logistic(raw), -23))


def tanh(centred: np.ndarray, scale: np.float32) -> np.ndarray:
    """Return 128 times the tanh of scaled integers, rounded."""
    raw, beyond = _sixteenths(centred, scale)
    return np.where(beyond, np.where(centred > 0, 128, -128), _shifted(_tanh(raw), -24))


def softmax_exponentials(scale: float) -> np.ndarray:
    """Return ``exp(-scale * d)`` for the distances ``d = 0..255``, with no integer bits, int64.

    What lies beyond the five integer bits of the exponent is 0.

    Args:
        scale: the logits' step times the factor in front of them.
    """
    multiplier, shift = fixed_point(min(scale * 2.0**26, 2.0**31 - 1))
    radius = int(np.floor((2**5 - 1) * 2.0 ** (31 - 5) / 2.0**shift))
    distances = np.arange(256)
    inside = distances <= radius
    raw = product(-np.where(inside, distances, 0) << shift, multiplier)
    return np.where(inside, exponential(raw, 5), 0)


def for_sum(exponentials: np.ndarray) -> np.ndarray:
    """Return exponentials as the summands of `softmax`, with twelve integer bits."""
    return _shifted(exponentials, -12)


MOST_CLASSES = 2**12 - 1
"""Sums of more summands might not have room in twelve integer bits."""


def softmax(exponentials: np.ndarray) -> np.ndarray:
    """Return 256 times the shares that exponentials have in their sum, rounded.

    Args:
        exponentials: of `softmax_exponentials`, classes last.
    """
    total = for_sum(exponentials).sum(axis=-1, keepdims=True)
    bits = np.frexp(total.astype(np.float64))[1]
    reciprocal = _shifted(_twice_inverse((total << (32 - bits)) - 2**31), 1)
    # The sum was divided by 2**(bits - 20) of its unit; 23 more bits leave multiples of 1/256.
    return rounded_shift(product(reciprocal, exponentials), bits - 20 + 23)


HALF_ROOT_OF_TWO = 1518500250
"""The root of 1/2 with no integer bits."""
ONE_OF_THREE_BITS = 1 << 28
"""1 with three integer bits."""


def inverse_root(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ``1 / sqrt(n)`` of whole numbers, as ``multiplier * 2**(shift - 31)``.

    Newton's iteration from 1, five times; 0 is taken for 1.

    Args:
        sums: int64, from 0 to 2**31 - 1.

    Returns:
        (multiplier, shift), int64.
    """
    number, shift = np.maximum(sums, 2), np.full(np.shape(sums), 11)
    large = number >= 1 << 29
    number, shift = np.where(large, number // 4, number), shift + large
    pairs = (31 - np.frexp(number.astype(np.float64))[1]) // 2 - 1
    number, shift = number << (2 * pairs) >> 1, shift - pairs
    half = _shifted(number, -1)
    x = np.full(np.shape(sums), ONE_OF_THREE_BITS)
    for _ in range(5):
        cube = _shifted(product(product(x, x), x), 6)
        three_halves = product(x, ONE_OF_THREE_BITS * 3 // 2)
        x = _shifted(three_halves - product(half, cube), 3)
    x = product(x, HALF_ROOT_OF_TWO) << np.maximum(-shift, 0)
    one = sums <= 1
    return np.where(one, _ONE, x), np.where(one, 0, -np.maximum(shift, 0))
