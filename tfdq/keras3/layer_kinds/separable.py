"""SeparableConv2D: a depthwise convolution, then one of single pixels."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from tfdq.keras3.graph import Node
from tfdq.keras3.layer_kinds.kernel import convolution_problem
from tfdq.keras3.layer_kinds.registry import Kind, register_kind


def _parts(node: Node) -> list[keras.layers.Layer]:
    """Return the two convolutions, with the layer's weights; the second has its name."""
    layer, config = node.layer, node.layer.get_config()

    def of(part: str) -> dict[str, Any]:
        return {what: config[f"{part}_{what}"] for what in ("regularizer", "constraint")}

    shared = {"trainable": layer.trainable, "dtype": "float32"}
    depthwise = keras.layers.DepthwiseConv2D(
        layer.kernel_size,
        strides=layer.strides,
        padding=layer.padding,
        dilation_rate=layer.dilation_rate,
        depth_multiplier=layer.depth_multiplier,
        use_bias=False,
        name=f"{layer.name}_depthwise",
        **{f"depthwise_{what}": value for what, value in of("depthwise").items()},
        **shared,
    )
    pointwise = keras.layers.Conv2D(
        layer.filters,
        1,
        use_bias=layer.use_bias,
        activation=layer.activation,
        name=layer.name,
        **{f"kernel_{what}": value for what, value in of("pointwise").items()},
        **{f"bias_{what}": value for what, value in of("bias").items()},
        **shared,
    )
    kernels = [layer.depthwise_kernel], [layer.pointwise_kernel, *([layer.bias] * layer.use_bias)]
    channels = layer.depthwise_kernel.shape[2], layer.pointwise_kernel.shape[2]
    for part, weights, count in zip((depthwise, pointwise), kernels, channels, strict=True):
        part.build((None, None, None, count))
        part.set_weights([ops.convert_to_numpy(weight) for weight in weights])
    return [depthwise, pointwise]


register_kind(Kind((keras.layers.SeparableConv2D,), None, convolution_problem, parts=_parts))
