"""A lower bound of a network's Lipschitz constant, by local gradient search."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tf_keras


def local_lipschitz(
    model: tf_keras.Model,
    x: Any,
    steps: int = 10,
    step_size: float = 0.1,
    bounds: tuple[float, float] | None = None,
) -> npt.NDArray[np.float64]:
    """Search near each image for the largest gain of the network.

    The gain at an image is the largest singular value of the network's Jacobian there, so it is
    a lower bound of the Lipschitz constant. The Jacobian is taken row by row (one backward pass
    for each output), its singular vectors from the small Gram matrix of its rows. A step goes to
    either side along the most stretched direction, where the network is steepest, and keeps the
    better one; a piecewise linear network has no gradient of the gain itself to follow. Cost:
    ``2 * steps + 1`` Jacobians.

    A fake-quantized network is differentiated straight through its rounding.

    Args:
        model: a model with one input and an output ``(n, classes)``.
        x: images ``(n, ...)``, float32.
        steps: moves of each image; 0: the gain at the images themselves.
        step_size: L2 length of a move, in input units.
        bounds: smallest and largest value of an input, which moves stay inside; None: anywhere.

    Returns:
        float64 ``(n,)``, the largest gain found from each image.

    Raises:
        ValueError: ``x`` is empty, ``steps`` is negative or ``step_size`` not positive.
    """
    images = np.asarray(x, np.float32)
    if images.ndim < 2 or len(images) == 0:
        raise ValueError(f"x must be a non-empty batch of inputs, got shape {images.shape}")
    if steps < 0 or not step_size > 0:
        raise ValueError(f"steps must be >= 0 and step_size > 0, got {steps} and {step_size}")
    gain, direction = _gain(model, images)
    best = gain
    for _ in range(steps):
        candidates = []
        for sign in (1.0, -1.0):
            moved = images + np.float32(sign * step_size) * direction
            moved = moved if bounds is None else np.clip(moved, *bounds)
            candidates.append((moved, *_gain(model, moved)))
        better = candidates[0][1] >= candidates[1][1]
        pick = better.reshape(-1, *[1] * (images.ndim - 1))
        images = np.where(pick, candidates[0][0], candidates[1][0])
        direction = np.where(pick, candidates[0][2], candidates[1][2])
        best = np.maximum(best, np.where(better, candidates[0][1], candidates[1][1]))
    return best


def _gain(
    model: tf_keras.Model, images: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32]]:
    """Return the Jacobian's norm at each image and the unit direction that it stretches most."""
    inputs = tf.convert_to_tensor(images)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(inputs)
        outputs = model(inputs, training=False)
        columns = tf.unstack(tf.reshape(outputs, (len(images), -1)), axis=1)
    # Rows one by one: batch_jacobian would trace a vectorised loop anew for every call.
    zero = tf.zeros_like(inputs)
    rows = [tape.gradient(c, inputs, unconnected_gradients="zero") for c in columns]
    del tape
    jacobian = np.stack([np.asarray(zero if r is None else r, np.float64) for r in rows], axis=1)
    flat = jacobian.reshape(*jacobian.shape[:2], -1)
    values, vectors = np.linalg.eigh(flat @ flat.transpose(0, 2, 1))
    gain = np.sqrt(np.maximum(values[:, -1], 0.0))
    direction = np.einsum("nc,ncp->np", vectors[:, :, -1], flat)
    direction /= np.maximum(gain, np.finfo(np.float64).tiny)[:, None]
    return gain, direction.reshape(images.shape).astype(np.float32)
