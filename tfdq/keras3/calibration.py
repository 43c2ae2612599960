"""Set the ranges of a quantized Keras 3 model, and its BatchNorms' statistics, from images."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from tfdq.calibration_images import calibration_batches
from tfdq.keras3.dropped_epsilon import Dropped, dropped, warn_of_dropped_epsilons
from tfdq.keras3.layer_kinds.base import Estimates, estimates, observing
from tfdq.keras3.quantized_model import QuantizedModel
from tfdq.mistakes import WrongTypeError


def calibrate(
    model: QuantizedModel, images: Any, batch_size: int = 128, *, batch_norm: bool = False
) -> QuantizedModel:
    """Set the observed ranges of a quantized model from images, without training.

    Weights stay, and BatchNorm statistics unless asked for. A `UserWarning` names the layers whose
    ``epsilon``, which integer kernels do not add, is no small number beside the variances seen.

    Args:
        model: made by `quantize_model`.
        images: array ``(n, ...)`` in the range the model takes; a list of such images or of
            batches of them; or a ``tf.data.Dataset`` of batches. Labels, as the second of a pair,
            are ignored. For a model of several inputs one array for each: a list, or a dictionary
            by name.
        batch_size: images in a batch, where ``images`` is no dataset.
        batch_norm: replace the statistics of each BatchNormalization that follows training by the
            mean and the variance over all images, before ranges are set. Layers in float
            (``skip``) keep theirs.

    Returns:
        The same model, sealed.

    Raises:
        TypeError: the model is not quantized, or ``images`` is of a kind that holds no images.
        ValueError: there are no images, or they do not fit the model's inputs, or are not finite;
            or there is no BatchNormalization to estimate.
    """
    if not isinstance(model, QuantizedModel):
        raise WrongTypeError(
            f"expected a model of tfdq.keras3.quantize_model, got {type(model).__name__}"
        )
    if batch_norm:
        _estimate(model, images, batch_size)
    lost: Dropped = {}
    token, normalized = observing.set(True), dropped.set(lost)
    try:
        _pass(model, images, batch_size)
    finally:
        observing.reset(token)
        dropped.reset(normalized)
    model.seal()
    warn_of_dropped_epsilons(lost)
    return model


def _estimate(model: QuantizedModel, images: Any, batch_size: int) -> None:
    """Replace the statistics of the BatchNorms by those over all images."""
    found: Estimates = {}
    token = estimates.set(found)
    try:
        _pass(model, images, batch_size)
    finally:
        estimates.reset(token)
    if not found:
        raise ValueError(f"{model.name!r} has no BatchNormalization that follows training")
    for layer, statistics in found.items():
        mean, variance = statistics.pooled()
        layer.moving_mean.assign(mean)
        layer.moving_variance.assign(variance)


def _pass(model: QuantizedModel, images: Any, batch_size: int) -> None:
    """Call a model on images, a batch at a time."""
    seen = 0
    for batch in calibration_batches(model, images, batch_size):
        tensors = [ops.convert_to_tensor(part) for part in batch]
        model(keras.tree.pack_sequence_as(model._inputs_struct, tensors), training=False)
        seen += len(batch[0])
    if not seen:
        raise ValueError("there are no images to calibrate on")
