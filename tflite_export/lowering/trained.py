"""The trained model behind an export, whatever it was trained with."""

from __future__ import annotations

from typing import Any

from tfdq.description import TrainedModel


def trained(model: Any) -> TrainedModel:
    """Return what the export needs of a model: its description, and its layers as functions.

    Args:
        model: a trained model of ``tfdq.quantize_model``.

    Raises:
        TypeError: it is none.
        ValueError: it is not quantized, or a layer is in float or has no integer form.
    """
    if hasattr(model, "as_trained"):
        return model.as_trained()
    from tfdq.quantization.describe import TrainedKerasModel

    return TrainedKerasModel(model)
