"""Windows of an image: convolutions and pools go over them."""

from __future__ import annotations

import math

import numpy as np

from tflite_export.ir.graph import Convolution, Pooling

_ROUNDED_UP = 1 + 1e-12


def same_padding(size: int, window: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """Zeros before and after one dimension under ``SAME`` padding."""
    span = (window - 1) * dilation + 1
    total = max((-(-size // stride) - 1) * stride + span - size, 0)
    return total // 2, total - total // 2


def windows(
    values: np.ndarray, window: tuple[int, int], options: Convolution | Pooling, fill: int
) -> np.ndarray:
    """All windows of an image, shape ``(batch, out_h, out_w, channels, window_h, window_w)``."""
    dilation = (1, 1)
    if isinstance(options, Convolution):
        dilation = (options.dilation_h, options.dilation_w)
    stride = (options.stride_h, options.stride_w)
    if options.padding == "SAME":
        pads = [
            same_padding(values.shape[1 + i], window[i], stride[i], dilation[i]) for i in (0, 1)
        ]
        values = np.pad(values, ((0, 0), *pads, (0, 0)), constant_values=fill)
    span = tuple((window[i] - 1) * dilation[i] + 1 for i in (0, 1))
    view = np.lib.stride_tricks.sliding_window_view(values, span, axis=(1, 2))
    return view[:, :: stride[0], :: stride[1], :, :: dilation[0], :: dilation[1]]


def pool_counts(size: tuple[int, ...], options: Pooling) -> np.ndarray:
    """How many pixels each pooling window covers, padding left out.

    Args:
        size: height and width of the image.
        options: window, strides, padding.

    Returns:
        int64, shape ``(1, out_h, out_w, 1)``.
    """
    ones = np.ones((1, size[0], size[1], 1), np.int64)
    return windows(ones, (options.filter_h, options.filter_w), options, 0).sum(axis=(4, 5))


def _coverage(size: int, pool: int, stride: int, padding: str) -> np.ndarray:
    """Which positions the windows along one axis cover, 0 or 1, float64 ``(windows, size)``."""
    before, after = same_padding(size, pool, stride) if padding == "same" else (0, 0)
    count = (size + before + after - pool) // stride + 1
    starts = np.arange(count)[:, None] * stride - before
    places = np.arange(size)[None, :]
    return ((places >= starts) & (places < starts + pool)).astype(np.float64)


def max_pool_axis(size: int, pool: int, stride: int, padding: str) -> float:
    """The factor of one axis in the exact L2 constant of max-pooling.

    Windows that overlap may all have the same largest pixel, which then counts once for each:
    ``||max(x) - max(y)||^2 <= sum_w max_{i in w} (x_i - y_i)^2 <= m ||x - y||^2`` with ``m`` the
    most windows that share a pixel; a single bright pixel attains it. So max-pooling is
    1-Lipschitz in L2 only without overlap (in L_inf it always is).

    Args:
        size: of the axis.
        pool: of the window.
        stride: of the windows.
        padding: ``"valid"`` or ``"same"``.

    Returns:
        ``sqrt(m)`` of the axis; the constant of the layer is the product over the two axes.
    """
    before, after = same_padding(size, pool, stride) if padding == "same" else (0, 0)
    starts = np.arange((size + before + after - pool) // stride + 1) * stride - before
    changes = np.zeros(size + 1, np.int64)
    np.add.at(changes, np.clip(starts, 0, size), 1)
    np.add.at(changes, np.clip(starts + pool, 0, size), -1)
    return math.sqrt(float(np.max(np.cumsum(changes)[:-1])))


def average_pool_axis(size: int, pool: int, stride: int, padding: str) -> float:
    """The norm of average-pooling along one axis; the layer's is the product of two.

    TensorFlow averages over the pixels inside the image only, so the matrix of a padded pooling
    is that of a convolution with its rows rescaled; it is a Kronecker product of its two axes.

    Args:
        size: of the axis.
        pool: of the window.
        stride: of the windows.
        padding: ``"valid"`` or ``"same"``.
    """
    covered = _coverage(size, pool, stride, padding)
    matrix = covered / np.sum(covered, axis=1, keepdims=True)
    return float(np.linalg.norm(matrix, 2)) * _ROUNDED_UP
