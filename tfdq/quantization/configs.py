"""The tfmot ``QuantizeConfig`` of tfdq: which quantizer goes where in a layer."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras

from tfdq.quantization.layers import FusedKernel
from tfdq.quantization.packing import pack, unpack
from tfdq.quantization.quantizers import (
    FixedRangeQuantizer,
    KernelQuantizer,
    ObservedRangeQuantizer,
)

OutputQuantizer = FixedRangeQuantizer | ObservedRangeQuantizer


@tf_keras.saving.register_keras_serializable(package="tfdq")
class DefensiveQuantizeConfig(tfmot.quantization.keras.QuantizeConfig):
    """Quantize a layer's kernel and output; either may be left as it is.

    Works with ``tfmot.quantization.keras.quantize_annotate_layer``:

        >>> annotated = tfmot.quantization.keras.quantize_annotate_layer(
        ...     tf_keras.layers.Conv2D(16, 3),
        ...     DefensiveQuantizeConfig(kernel=KernelQuantizer(4), output=FixedRangeQuantizer(4)))

    Args:
        kernel: quantizer of the kernel, or None.
        output: quantizer of the output, or None.
    """

    def __init__(
        self,
        kernel: KernelQuantizer | dict[str, Any] | None = None,
        output: OutputQuantizer | dict[str, Any] | None = None,
    ) -> None:
        self.kernel: KernelQuantizer | None = unpack(kernel)
        self.output: OutputQuantizer | None = unpack(output)

    def get_weights_and_quantizers(
        self, layer: tf_keras.layers.Layer
    ) -> list[tuple[tf.Variable, KernelQuantizer]]:
        """Return the layer's kernel with its quantizer."""
        return [] if self.kernel is None else [(_kernel_of(layer), self.kernel)]

    def get_activations_and_quantizers(self, layer: tf_keras.layers.Layer) -> list[Any]:
        """Return nothing: the activation is quantized as the layer's output."""
        return []

    def set_quantize_weights(
        self, layer: tf_keras.layers.Layer, quantize_weights: list[tf.Tensor]
    ) -> None:
        """Hand the fake-quantized kernel to the layer."""
        if not quantize_weights:
            return
        if isinstance(layer, FusedKernel):
            layer.use_kernel(quantize_weights[0])
        elif hasattr(layer, "depthwise_kernel"):
            layer.depthwise_kernel = quantize_weights[0]
        else:
            layer.kernel = quantize_weights[0]

    def set_quantize_activations(
        self, layer: tf_keras.layers.Layer, quantize_activations: list[Any]
    ) -> None:
        """Do nothing: the activation is quantized as the layer's output."""

    def get_output_quantizers(self, layer: tf_keras.layers.Layer) -> list[OutputQuantizer]:
        """Return the quantizer of the output."""
        return [] if self.output is None else [self.output]

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor, serialized."""
        return {
            "kernel": None if self.kernel is None else pack(self.kernel),
            "output": None if self.output is None else pack(self.output),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> DefensiveQuantizeConfig:
        """Return the config that ``get_config`` describes."""
        return cls(**config)


def _kernel_of(layer: tf_keras.layers.Layer) -> tf.Variable:
    if isinstance(layer, FusedKernel):
        return layer.trained_kernel
    kernel = getattr(layer, "depthwise_kernel", getattr(layer, "kernel", None))
    if kernel is None:
        raise ValueError(
            f"layer {layer.name!r} ({type(layer).__name__}) has no kernel to quantize; "
            "use DefensiveQuantizeConfig(kernel=None, output=...)"
        )
    return kernel
