"""Estimate the statistics of a quantized model's BatchNorms anew from images ("precise BN")."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import tf_keras

from tfdq.batch_statistics import PooledStatistics
from tfdq.quantization.layers import FusedBatchNormalization, FusedKernel

_estimating: ContextVar[bool] = ContextVar("estimating", default=False)


def takes_batch_statistics(layer: tf_keras.layers.Layer) -> bool:
    """Return whether a layer is to normalize by its batch now, in whatever mode it is called."""
    return _estimating.get() and _norm(layer) is not None


def _norm(layer: tf_keras.layers.Layer) -> tf_keras.layers.BatchNormalization | None:
    if isinstance(layer, FusedBatchNormalization):
        return layer
    return layer.batch_norm if isinstance(layer, FusedKernel) else None


def norms_that_follow(model: tf_keras.Model) -> list[tf_keras.layers.BatchNormalization]:
    """Return the BatchNorms of a quantized model that follow training: those that are not frozen.

    One that is called in inference mode does not.
    """
    return [
        norm
        for wrapper in model.layers
        if getattr(wrapper, "layer_training", True) is not False
        and (norm := _norm(getattr(wrapper, "layer", None))) is not None
        and norm.trainable
    ]


@contextmanager
def estimating_statistics(model: tf_keras.Model) -> Iterator[Callable[[int], None]]:
    """Let the BatchNorms of a quantized model take the statistics of what passes, pooled.

    Those that are frozen, or called in inference mode, keep theirs.

    Yields:
        A function that is to be called after each batch, with the number of its images.

    Raises:
        ValueError: no BatchNorm follows training.
    """
    norms = norms_that_follow(model)
    if not norms:
        raise ValueError(f"{model.name!r} has no BatchNormalization that follows training")
    momenta = [norm.momentum for norm in norms]
    pools = [PooledStatistics() for _ in norms]

    def take(count: int) -> None:
        for norm, pool in zip(norms, pools, strict=True):
            pool.take(count, norm.moving_mean.numpy(), norm.moving_variance.numpy())

    token = _estimating.set(True)
    try:
        for norm in norms:
            # Then the moving statistics are those of the last batch.
            norm.momentum = 0.0
        yield take
        for norm, pool in zip(norms, pools, strict=True):
            mean, variance = pool.pooled()
            norm.moving_mean.assign(mean)
            norm.moving_variance.assign(variance)
    finally:
        _estimating.reset(token)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
