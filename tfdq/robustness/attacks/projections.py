"""Norm balls in float32 without a rounding error: what an attack returns is inside, exactly."""

from __future__ import annotations

import numpy as np

from tfdq.robustness.attacks.ranges import Extent


def linf_bounds(
    x: np.ndarray, eps: Extent, clip: tuple[Extent, Extent]
) -> tuple[np.ndarray, np.ndarray]:
    """The smallest and the largest float32 image within `eps` of `x` and within `clip`.

    `x + eps` rounded to float32 can lie outside the ball by half a unit in the last place; here the
    bounds are rounded inwards, so that any float32 image between them satisfies
    `|x_adv - x| <= eps` in exact arithmetic.

    Args:
        x: float32 images, within `clip`.
        eps: Radius in input units, >= 0; one number, or one for each channel.
        clip: Range of the inputs, likewise.

    Returns:
        float32 arrays like `x`, lower <= x <= upper.
    """
    centre = x.astype(np.float64)
    lower = (centre - eps).astype(np.float32)
    upper = (centre + eps).astype(np.float32)
    outside = centre - lower.astype(np.float64) > eps
    lower[outside] = np.nextafter(lower[outside], np.float32(np.inf))
    outside = upper.astype(np.float64) - centre > eps
    upper[outside] = np.nextafter(upper[outside], np.float32(-np.inf))
    least, most = inward(clip)
    # x itself is always allowed.
    return np.minimum(np.maximum(lower, least), x), np.maximum(np.minimum(upper, most), x)


def inward(clip: tuple[Extent, Extent]) -> tuple[np.ndarray, np.ndarray]:
    """The ends of a range as float32; one that is no float32 number is rounded inwards."""
    floor, ceiling = np.float32(clip[0]), np.float32(clip[1])
    least = np.where(floor < np.float64(clip[0]), np.nextafter(floor, np.float32(np.inf)), floor)
    most = np.where(
        ceiling > np.float64(clip[1]), np.nextafter(ceiling, np.float32(-np.inf)), ceiling
    )
    return least, most


def project_l2(
    x_adv: np.ndarray, x: np.ndarray, eps: float, clip: tuple[Extent, Extent]
) -> np.ndarray:
    """The images moved into the L2 ball around `x` and into `clip`.

    Scaling the perturbation down and then clipping never leaves the ball, as `x` is within `clip`.
    Rounding to float32 can, by an ulp: such images are pulled in further until the norm, taken in
    float64, is at most `eps`.

    Args:
        x_adv: float32 images, [n, ...].
        x: Their centres, within `clip`.
        eps: Radius, >= 0.
        clip: Range of the inputs.

    Returns:
        float32 images like `x_adv`.
    """
    lower, upper = linf_bounds(x, np.inf, clip)
    centre = x.astype(np.float64)
    delta = x_adv.astype(np.float64) - centre
    shrink = np.ones(len(x))
    result = x_adv
    while True:
        norm = l2_norm(delta)
        factor = np.minimum(1.0, eps / np.maximum(norm, 1e-300)) * shrink
        scaled = centre + delta * factor.reshape(-1, *[1] * (x.ndim - 1))
        result = np.clip(scaled.astype(np.float32), lower, upper)
        outside = l2_norm(result.astype(np.float64) - centre) > eps
        if not outside.any():
            return result
        shrink[outside] *= 1 - 1e-7


def l2_norm(delta: np.ndarray) -> np.ndarray:
    """L2 norms of the perturbations, [n, ...] -> [n]."""
    return np.sqrt(np.sum(np.square(delta), axis=tuple(range(1, delta.ndim))))


def linf_norm(delta: np.ndarray) -> np.ndarray:
    """L_inf norms of the perturbations, [n, ...] -> [n]."""
    return np.max(np.abs(delta), axis=tuple(range(1, delta.ndim)), initial=0.0)


def per_image(values: np.ndarray, like: np.ndarray) -> np.ndarray:
    """One value per image, shaped to broadcast over `like`: [n] -> [n, 1, ..., 1]."""
    return np.asarray(values).reshape(-1, *[1] * (like.ndim - 1))
