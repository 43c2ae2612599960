"""The singular value that a penalty aims at; needs no TensorFlow."""

from __future__ import annotations

import math
from typing import Literal

SingularValue = float | Literal["1/k"]


def check_target(target: SingularValue) -> SingularValue:
    """Return the singular value that a penalty aims at, or say what is wrong with it.

    Raises:
        ValueError: ``target`` is neither ``"1/k"`` nor a finite number > 0.
    """
    if target == "1/k":
        return "1/k"
    if isinstance(target, (str, bool)) or not math.isfinite(target) or target <= 0:
        raise ValueError(f"target must be a finite number > 0 or '1/k', got {target!r}")
    return float(target)


def default_target(penalty: str) -> SingularValue:
    """Return what a penalty aims at unless told: a convolution that does not expand.

    The penalties of the reshaped kernel aim at ``"1/k"``, since the convolution's norm is up to k
    times the kernel's; the one of the convolution itself aims at 1.

    Args:
        penalty: its name, as ``tfdq.penalties.get_regularizer`` takes it.
    """
    return 1.0 if penalty == "conv_orthogonal" else "1/k"
