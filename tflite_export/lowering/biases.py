"""Round a trained model's biases to the integers that an export stores.

An int8 kernel adds its bias in units of input step times weight step. Rounding it moves an
activation across a rounding boundary now and then; in a network of few bits such flips multiply
from layer to layer. Done in the model, the rounding is part of what is evaluated and attacked, and
nothing but ties is left between model and file.
"""

from __future__ import annotations

from typing import Any

from tflite_export.lowering.lower import lower
from tflite_export.lowering.trained import trained


def round_biases(model: Any, weights: str = "int8") -> float:
    """Round the biases (or BatchNorm's beta) of a model to what its export stores, in place.

    Doing it twice changes nothing more.

    Args:
        model: a trained model of ``tfdq.quantize_model``.
        weights: as for `convert`; ``"int4"`` has coarser biases.

    Returns:
        The largest change, in the units of the layer's output.

    Raises:
        TypeError: as `convert`.
        ValueError: as `convert`.
    """
    source = trained(model)
    return source.shift_offsets(lower(source.description, weights=weights).biases)
