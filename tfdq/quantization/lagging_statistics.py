"""BatchNorms whose moving variance lags behind training, so that a penalty sees another kernel."""

from __future__ import annotations

import warnings
from collections import defaultdict
from dataclasses import dataclass

import tf_keras

QUICK_MOMENTUM = 0.9
"""The largest momentum whose moving variance was seen to keep up; that of ``tfdq.models``."""
_NAMED = 5


class LaggingStatisticsWarning(UserWarning):
    """A penalty on the folded or deployed kernel sees BatchNorm through a variance that lags."""


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
    """Warn once of all BatchNorms that lag, with what to do.

    Args:
        norms: may be empty.
        stacklevel: of ``warnings.warn``, seen from the caller.
    """
    if not norms:
        return
    by_momentum = defaultdict(list)
    for norm in norms:
        by_momentum[norm.momentum].append(norm.name)
    parts = []
    for momentum, names in sorted(by_momentum.items(), reverse=True):
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        parts.append(f"{momentum:g} in {', '.join(names[:_NAMED])}{more}")
    warnings.warn(
        f"BatchNormalization with a momentum above {QUICK_MOMENTUM}: {'; '.join(parts)}. Its "
        f"moving variance lags behind training, and the penalty on the {norms[0].on} kernel, which "
        "sees BatchNorm through it, acts on another kernel than the one that will ship: robustness "
        f"may fall, not rise. Give batch_norm_momentum={QUICK_MOMENTUM}; or on='kernel'; or, for a "
        "model that is not trained on, lipschitz_beta=0",
        LaggingStatisticsWarning,
        stacklevel=stacklevel + 1,
    )
