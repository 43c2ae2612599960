"""Rounding with gradients, in operations that no compiler changes.

A compiler may fuse a product and a sum into one operation that rounds once, or multiply by a
reciprocal where a division is written. So the functions here never add to a product.
"""

from __future__ import annotations

from typing import Any

from keras import ops


def round_through(steps: Any) -> Any:
    """Return whole numbers, ties to even; the gradient is that of no rounding.

    Args:
        steps: float32, clipped to the range already, so that the gradient is 0 outside.
    """
    return with_gradient_of(ops.round(steps), steps)


def with_gradient_of(exact: Any, smooth: Any) -> Any:
    """Return ``exact``, with the gradient of ``smooth``.

    Args:
        exact: float32.
        smooth: float32 of the same shape, finite where ``exact`` is.
    """
    return ops.stop_gradient(exact) + (smooth - ops.stop_gradient(smooth))


def between(values: Any, low: Any, high: Any) -> Any:
    """Return values clipped to a range whose ends are tensors."""
    return ops.minimum(ops.maximum(values, low), high)
