"""The trained model behind an export, whatever it was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tfdq.description import TrainedModel


def trained(model: Any, input_shape: Sequence[int] | None = None) -> TrainedModel:
    """Return what the export needs of a model: its description, and its layers as functions.

    Args:
        model: a trained model of ``tfdq.quantize_model``.
        input_shape: of an input, without the batch, where it is not that of the model.

    Raises:
        TypeError: it is none.
        ValueError: it is not quantized, a layer is in float or has no integer form, or the model
            does not take inputs of that shape.
    """
    if hasattr(model, "as_trained"):
        return model.as_trained() if input_shape is None else model.as_trained(input_shape)
    if input_shape is not None:
        raise ValueError(
            f"input_shape={tuple(input_shape)} is for Keras 3 models; build a tf_keras model with "
            "an Input of that shape, quantize it, and hand the weights of the trained one over "
            "with set_weights(model.get_weights())"
        )
    from tfdq.quantization.describe import TrainedKerasModel

    return TrainedKerasModel(model)
