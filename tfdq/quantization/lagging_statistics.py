"""BatchNorms whose moving statistics lag behind training, so that another network ships."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import tf_keras

QUICK_MOMENTUM = 0.9
"""The largest momentum whose moving statistics were seen to keep up; that of ``tfdq.models``."""
_NAMED = 5


class LaggingStatisticsWarning(UserWarning):
    """BatchNorm's statistics lag behind what a penalty on the kernel that ships moves."""


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
    norm: tf_keras.layers.BatchNormalization | None,
    momentum: float,
    penalty: tf_keras.regularizers.Regularizer | None,
) -> LaggingNorm | None:
    """Return what is to be said of a BatchNorm and the penalty of the kernel before it; or None.

    A frozen BatchNorm does not lag, and neither matters to a penalty on the trained kernel.

    Args:
        norm: behind the kernel, if there is one.
        momentum: that it will be trained with.
        penalty: of the kernel, if there is one.
    """
    on = getattr(penalty, "on", "kernel")
    if norm is None or not norm.trainable or on == "kernel" or momentum <= QUICK_MOMENTUM:
        return None
    return LaggingNorm(norm.name, momentum, on)


def warn_of_lag(norms: list[LaggingNorm], stacklevel: int) -> None:
    """Warn once of all BatchNorms that were given a momentum with which they lag.

    Args:
        norms: may be empty; all with the momentum that the settings gave them.
        stacklevel: of ``warnings.warn``, seen from the caller.
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
        stacklevel=stacklevel + 1,
    )
