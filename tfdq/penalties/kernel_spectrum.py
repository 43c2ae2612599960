"""The Fourier transform of a convolution kernel's taps, with strides; needs no TensorFlow."""

from __future__ import annotations

import math

import numpy as np


def tap_transform(
    size: tuple[int, int], strides: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the Fourier transform of a kernel's taps, strides taken into phases.

    Args:
        size: height and width of the window.
        strides: of the convolution.

    Returns:
        Cosine and sine parts, float64 ``(frequencies, phases, taps)``, for one of each pair of
        opposite frequencies, and the weights that make a sum over them a mean over all.
    """
    points = [2 * math.ceil(k / s) - 1 for k, s in zip(size, strides, strict=True)]
    # An odd number of points: only frequency 0 is its own opposite.
    frequencies = [
        (u, v)
        for u in range(points[0] // 2 + 1)
        for v in range(points[1])
        if u > 0 or v <= points[1] // 2
    ]
    used = (min(strides[0], size[0]), min(strides[1], size[1]))
    angles = np.zeros((len(frequencies), used[0] * used[1], size[0] * size[1]))
    present = np.zeros_like(angles)
    for row, column in np.ndindex(*size):
        (step_h, phase_h), (step_w, phase_w) = divmod(row, strides[0]), divmod(column, strides[1])
        phase, tap = phase_h * used[1] + phase_w, row * size[1] + column
        for index, (u, v) in enumerate(frequencies):
            turns = u * step_h / points[0] + v * step_w / points[1]
            angles[index, phase, tap] = 2 * np.pi * turns
            present[index, phase, tap] = 1.0
    weights = np.array([1.0 if (u, v) == (0, 0) else 2.0 for u, v in frequencies])
    return np.cos(angles) * present, np.sin(angles) * present, weights / math.prod(points)
