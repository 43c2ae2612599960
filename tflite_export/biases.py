"""Round a trained model's biases to the integers that an export stores.

An int8 kernel adds its bias in units of input step times weight step. Rounding it moves an
activation across a rounding boundary now and then; in a network of few bits such flips multiply
from layer to layer. Done in the model, the rounding is part of what is evaluated and attacked, and
nothing but ties is left between model and file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tf_keras

from tflite_export.lower import Lowered, lower


def round_biases(model: tf_keras.Model, weights: str = "int8") -> float:
    """Round the biases (or BatchNorm's beta) of a model to what its export stores, in place.

    Doing it twice changes nothing more.

    Args:
        model: a trained model of ``tfdq.quantize_model``.
        weights: as for `convert`; ``"int4"`` has coarser biases.

    Returns:
        The largest change, in the units of the layer's output.

    Raises:
        ValueError: as `convert`.
    """
    return align(lower(model, weights=weights))


def align(lowered: Lowered) -> float:
    """`round_biases` for a model that is lowered already; the lowered graph stays as it is."""
    largest = 0.0
    for node in lowered.nodes.nodes:
        layer: Any = getattr(node.layer, "layer", None)
        stored = None if layer is None else lowered.biases.get(layer.name)
        if stored is None or not hasattr(layer, "folded") or not _has_bias(layer):
            continue
        multiplier, offset = layer.folded()
        change = stored - offset
        if not change.any():
            continue
        largest = max(largest, float(np.abs(change).max()))
        _shift(layer, change, multiplier)
    return largest


def _has_bias(layer: Any) -> bool:
    return isinstance(layer, tf_keras.layers.BatchNormalization) or bool(
        layer.batch_norm is not None or layer.use_bias
    )


def _shift(layer: Any, change: np.ndarray, multiplier: np.ndarray) -> None:
    """Add ``change`` to the layer's offset through whichever variable it has for it."""
    norm = layer if isinstance(layer, tf_keras.layers.BatchNormalization) else layer.batch_norm
    if norm is None:
        _add(layer.bias, change)
    elif norm.center:
        _add(norm.beta, change)
    else:
        _add(norm.moving_mean, -change / np.where(multiplier == 0.0, 1.0, multiplier))


def _add(variable: Any, change: np.ndarray) -> None:
    variable.assign((np.asarray(variable, np.float64) + change).astype(np.float32))
