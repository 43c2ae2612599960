"""tfdq as a tfmot quantization scheme, for ``tfmot.quantization.keras.quantize_apply``."""

from __future__ import annotations

from typing import Any

import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras import (
    quantize_registry,
    quantize_scheme,
)

from tfdq.quantization.configs import DefensiveQuantizeConfig
from tfdq.quantization.quantizers import KernelQuantizer, ObservedRangeQuantizer
from tfdq.quantization.rewrite import DefensiveLayoutTransform
from tfdq.quantization.settings import LINEAR_BITS, Settings

_KERNEL_LAYERS = (
    tf_keras.layers.Conv2D,
    tf_keras.layers.DepthwiseConv2D,
    tf_keras.layers.Dense,
)


class DefensiveQuantizeRegistry(quantize_registry.QuantizeRegistry):
    """The ``QuantizeConfig`` of a layer with a kernel that stands by itself.

    Args:
        settings: how to quantize.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def supports(self, layer: tf_keras.layers.Layer) -> bool:
        """Tell whether the layer has a kernel that can be quantized."""
        return type(layer) in _KERNEL_LAYERS

    def get_quantize_config(self, layer: tf_keras.layers.Layer) -> DefensiveQuantizeConfig:
        """Return the config of a layer.

        Raises:
            ValueError: the layer has no kernel.
        """
        if not self.supports(layer):
            raise ValueError(f"no config for {layer.name!r} ({type(layer).__name__})")
        weight_bits, _ = self.settings.bits_of(layer.name, first=False, last=False)
        return DefensiveQuantizeConfig(
            KernelQuantizer(
                weight_bits,
                per_channel=not isinstance(layer, tf_keras.layers.Dense),
                depthwise=isinstance(layer, tf_keras.layers.DepthwiseConv2D),
            ),
            ObservedRangeQuantizer(LINEAR_BITS),
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
        return DefensiveQuantizeRegistry(self.settings)
