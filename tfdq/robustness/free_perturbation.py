"""The perturbation of Free adversarial training: the training step's own gradient moves it."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops


def carried(x: Any, perturbation: Any, eps: Any, step_size: Any, clip: tuple[Any, Any]) -> Any:
    """Return perturbed images; the gradient by the perturbation is its next value.

    A variable that is marked `overwrite_with_gradient` takes that value when the optimizer
    updates the weights, so that one backward pass serves both.

    Args:
        x: Images, shape `(n, ...)`.
        perturbation: Of the ball, shape `(batch, ...)`, `batch >= n`; further rows stay.
        eps: Radius, a tensor that broadcasts to an image.
        step_size: Of the step up the sign of the gradient, a tensor like `eps`.
        clip: `(lo, hi)` of valid inputs, arrays that broadcast to an image.

    Source: Shafahi et al., Adversarial Training for Free!, NeurIPS 2019, algorithm 1.
    """
    floor, ceiling = (ops.convert_to_tensor(np.asarray(end, np.float32)) for end in clip)
    count = ops.shape(x)[0]

    @ops.custom_gradient
    def moved(images: Any, offsets: Any) -> Any:
        def gradient(*args: Any, upstream: Any = None) -> tuple[Any, Any]:
            (slope,) = args if upstream is None else (upstream,)
            slope = ops.where(ops.isfinite(slope), slope, ops.zeros_like(slope))
            onwards = ops.clip(offsets[:count] + step_size * ops.sign(slope), -eps, eps)
            return slope, ops.concatenate([onwards, offsets[count:]])

        return ops.clip(images + offsets[:count], floor, ceiling), gradient

    return moved(x, perturbation)
