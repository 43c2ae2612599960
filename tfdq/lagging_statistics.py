"""BatchNorms whose moving statistics lag behind training, so that another network ships."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from typing import Any

QUICK_MOMENTUM = 0.9
"""The largest momentum whose moving statistics were seen to keep up; that of ``tfdq.models``."""
_NAMED = 5
_INSIDE = ("tfdq.", "tflite_export.", "tensorflow_model_optimization.")


class LaggingStatisticsWarning(UserWarning):
    """BatchNorm's moving statistics lag behind the network that trains, and theirs ships."""


@dataclass(frozen=True)
class LaggingNorm:
    """A BatchNorm that is folded into a penalised kernel and follows training slowly.

    Attributes:
        name: of the layer.
        momentum: of its moving statistics.
        on: the kernel that the penalty acts on.
    """

    name: str
    momentum: float
    on: str


def lagging_norm(
    norm: Any,
    momentum: float,
    on: str,
) -> LaggingNorm | None:
    """Return what is to be said of a BatchNorm and the penalty on the kernel before it; or None.

    A frozen BatchNorm does not lag, and neither matters to a penalty on the trained kernel.

    Args:
        norm: the BatchNormalization, of either Keras, behind the kernel, if there is one.
        momentum: that it will be trained with.
        on: the kernel that a penalty acts on: the trained ``"kernel"``, also where there is no
            penalty, ``"folded"`` or ``"deployed"``.
    """
    if norm is None or not norm.trainable or on == "kernel" or momentum <= QUICK_MOMENTUM:
        return None
    return LaggingNorm(norm.name, momentum, on)


def warn_of_lag(norms: list[LaggingNorm]) -> None:
    """Warn once of all BatchNorms that were given a momentum with which they lag.

    The warning points at the line that called the library.

    Args:
        norms: may be empty; all with the momentum that the settings gave them.
    """
    if not norms:
        return
    more = f" and {len(norms) - _NAMED} more" if len(norms) > _NAMED else ""
    names = ", ".join(norm.name for norm in norms[:_NAMED])
    warnings.warn(
        f"batch_norm_momentum={norms[0].momentum:g} in {names}{more}: with a momentum above "
        f"{QUICK_MOMENTUM} the moving statistics lag behind training while the penalty on the "
        f"{norms[0].on} kernel moves the layers, so the exported network is another than the one "
        "that trains and may be wrong on most images. Leave batch_norm_momentum out, or give "
        f"{QUICK_MOMENTUM}; or train on at a low learning rate until the statistics have settled",
        LaggingStatisticsWarning,
        stacklevel=frames_inside() + 1,
    )


def frames_inside() -> int:
    """Return the number of frames, up to the caller's caller, that belong to us or tfmot."""
    frame, count = sys._getframe(1), 0
    while frame.f_back is not None and frame.f_globals["__name__"].startswith(_INSIDE):
        frame, count = frame.f_back, count + 1
    return count
