"""tfdq as a tfmot quantization scheme, for ``tfmot.quantization.keras.quantize_apply``."""

from __future__ import annotations

from typing import Any

import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras import (
    quantize_registry,
    quantize_scheme,
)

from tfdq.quantization.rewrite import DefensiveLayoutTransform
from tfdq.quantization.settings import Settings


class DefensiveQuantizeRegistry(quantize_registry.QuantizeRegistry):
    """The registry tfmot asks after the layout transform; nothing is left to wrap then."""

    def supports(self, layer: tf_keras.layers.Layer) -> bool:
        """Return False: the transform has wrapped every layer that is to be quantized."""
        return False

    def get_quantize_config(self, layer: tf_keras.layers.Layer) -> Any:
        """Say where a layer's config comes from.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"the scheme chooses the config of {layer.name!r} in its layout transform; to give "
            "one of your own, annotate the layer with it"
        )


class DefensiveQuantizeScheme(quantize_scheme.QuantizeScheme):
    """Defensive Quantization as a scheme of tfmot.

    ``tfmot.quantization.keras.quantize_apply(annotated_model, scheme)`` quantizes the annotated
    layers only; ``tfdq.quantize_model`` quantizes all.

    Args:
        **settings: the keyword arguments of ``tfdq.quantize_model``.

    Raises:
        ValueError: a setting is out of range.

    Example:
        >>> annotated = tfmot.quantization.keras.quantize_annotate_model(model)
        >>> scheme = tfdq.DefensiveQuantizeScheme(lipschitz_beta=2e-3, activation_bits=4)
        >>> qat = tfmot.quantization.keras.quantize_apply(annotated, scheme)
    """

    def __init__(self, **settings: Any) -> None:
        self.settings = Settings(**settings)

    def get_layout_transformer(self) -> DefensiveLayoutTransform:
        """Return the transform that fuses and wraps the layers."""
        return DefensiveLayoutTransform(self.settings)

    def get_quantize_registry(self) -> DefensiveQuantizeRegistry:
        """Return the registry of configs."""
        return DefensiveQuantizeRegistry()
