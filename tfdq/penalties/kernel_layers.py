"""Which layers multiply by a kernel, whether wrapped by tfmot or not."""

from __future__ import annotations

from typing import Any

import tf_keras

_layers = tf_keras.layers


def unwrap(layer: Any) -> Any:
    """Return the layer inside a quantize wrapper, or the layer itself."""
    return layer.layer if hasattr(layer, "quantize_config") else layer


def has_kernel(layer: Any) -> bool:
    """Tell whether a layer is a convolution, a depthwise convolution or a dense layer."""
    inner = unwrap(layer)
    if isinstance(inner, (_layers.Conv2DTranspose, _layers.SeparableConv2D)):
        return False
    return isinstance(inner, (_layers.Conv2D, _layers.DepthwiseConv2D, _layers.Dense))
