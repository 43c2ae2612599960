r"""The orthogonality penalty on the kernels of quantized layers.

.. math:: \frac{\beta}{2} \lVert W^T W - \tau^2 I \rVert_F^2

Source: Lin, Gan, Han, *Defensive Quantization*, ICLR 2019, section 3.2.
"""

from __future__ import annotations

import math
from typing import Any

from keras import ops

from tfdq.penalties.targets import Target


def scale_blind(kernel: Any, rate: float = 1.0) -> Any:
    r"""Return a kernel as it is, with a gradient that leaves the length of each channel alone.

    .. math:: \frac{w_c}{\lVert w_c \rVert} \cdot \mathrm{stop\_gradient}(\lVert w_c \rVert)

    BatchNorm divides by the standard deviation of what the kernel computes, so it undoes any
    length. A penalty on the folded kernel that shortened it would only make the moving statistics
    lag behind.

    Args:
        kernel: float32 ``(n, channels)``. The direction of a channel of zeros is not
            defined; nothing is taken from its gradient.
        rate: factor of the gradient, >= 0.
    """
    # Divided by the largest entry first: the squares of 1e-30 are not float32.
    peaks = ops.stop_gradient(ops.max(ops.abs(kernel), axis=0, keepdims=True))
    peaks = ops.where(peaks > 0.0, peaks, 1.0)
    scaled = kernel / peaks
    # At least 1, but for a channel of zeros.
    squares = ops.sum(ops.square(scaled), axis=0, keepdims=True)
    lengths = ops.sqrt(ops.maximum(squares, 0.5))
    direction = scaled / lengths * ops.stop_gradient(lengths * peaks)
    return ops.stop_gradient(kernel) + rate * (direction - ops.stop_gradient(direction))


def singular_value(target: Target, taps: int) -> float:
    """Return what the singular values are pulled to: ``target``, or 1/k for k * k taps."""
    return 1.0 / math.sqrt(taps) if target == "1/k" else float(target)


def half_gram_deviation(matrices: Any, target: float) -> Any:
    """Return half the squared distance of the Grams to ``target**2 * I``, summed, a scalar.

    Args:
        matrices: float32 ``(..., rows, columns)``; the smaller of its two Grams is taken.
        target: the singular value aimed at.
    """
    rows, columns = matrices.shape[-2:]
    turned = ops.swapaxes(matrices, -1, -2)
    gram = ops.matmul(matrices, turned) if rows < columns else ops.matmul(turned, matrices)
    deviation = gram - target**2 * ops.eye(min(rows, columns))
    return 0.5 * ops.sum(ops.square(deviation))
