"""Layers on sequences `(n, steps, channels)`: those on images of one row.

Each becomes its 2-D form between two changes of shape, which `tfdq.keras3.expand` takes out again
where layers on sequences follow each other. Dense on more than `(n, features)` is such a layer too:
a convolution of single pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from tfdq.keras3.graph import Node
from tfdq.keras3.layer_kinds.base import register
from tfdq.keras3.layer_kinds.registry import (
    OPERATIONS,
    Kind,
    Request,
    channels_problem,
    register_kind,
)
from tfdq.keras3.layer_kinds.scaling import Scaling
from tfdq.keras3.layer_kinds.shape import QuantizedReshape

Parts = list[keras.layers.Layer]
_OF_EACH_WEIGHT = (
    keras.constraints.NonNeg,
    keras.regularizers.L1,
    keras.regularizers.L2,
    keras.regularizers.L1L2,
)


@register
class AsImage(keras.layers.Layer):
    """A sequence as an image of one row."""

    def call(self, x: Any) -> Any:
        """Return ``(n, 1, steps, channels)``."""
        return ops.expand_dims(x, 1)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the shape of the image."""
        return (input_shape[0], 1, *input_shape[1:])


@register
class AsSequence(keras.layers.Layer):
    """An image of one row as a sequence."""

    def call(self, x: Any) -> Any:
        """Return ``(n, steps, channels)``."""
        return ops.squeeze(x, 1)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the shape of the sequence."""
        return (input_shape[0], *input_shape[2:])


def _of_any_length(request: Request, *rows: int) -> QuantizedReshape:
    """Return the layer that gives the source the rows, and as many steps as there are."""
    target = (*rows, -1, request.step.node.shape[-1])
    return QuantizedReshape(target_shape=target, **request.common)


def is_elementwise(layer: Any) -> bool:
    """Return whether a layer does with an image of one row what it does with a sequence."""
    if isinstance(layer, keras.layers.BatchNormalization):
        return layer.axis in (-1, [-1])
    if isinstance(layer, keras.layers.Dropout):
        return layer.noise_shape is None
    kinds = (keras.layers.Activation, keras.layers.ReLU, keras.layers.LeakyReLU, Scaling)
    return isinstance(layer, kinds) or type(layer) in OPERATIONS["activation"]


def _like(node: Node, kind: type[keras.layers.Layer], **changes: Any) -> keras.layers.Layer:
    """Return the 2-D layer of the arguments of a 1-D one, built and with its weights.

    Args:
        node: the call.
        kind: class of the 2-D layer.
        changes: the arguments that differ.
    """
    layer = node.layer
    config = {**layer.get_config(), **changes, "dtype": "float32"}
    made: Any = kind.from_config(config)
    made.trainable = layer.trainable
    _say_likewise(layer, made)
    if layer.weights:
        kernels = [ops.convert_to_numpy(weight) for weight in layer.weights]
        made.build((None, None, None, node.arguments[0].shape[-1]))
        # A bias has one axis, and a kernel gets that of the rows.
        made.set_weights([w if w.ndim == 1 else w.reshape((1, *w.shape)) for w in kernels])
    return made


def _say_likewise(layer: Any, made: Any) -> None:
    """Give a layer the functions of another, which a configuration knows by their names only."""
    for name in vars(layer):
        if name == "activation" or name.endswith(("_regularizer", "_constraint")):
            setattr(made, name, getattr(layer, name))


def _row(window: Any) -> tuple[int, int]:
    """Return a window, or a stride, of one row."""
    return (1, int(window[0] if isinstance(window, (list, tuple)) else window))


def _convolution(kind: type) -> Callable[[Node], Parts]:
    def parts(node: Node) -> Parts:
        layer = node.layer
        size, dilation, strides = (
            _row(value) for value in (layer.kernel_size, layer.dilation_rate, layer.strides)
        )
        if kind is not keras.layers.Conv2D:
            # TensorFlow's depthwise convolutions have one stride; the row has one pixel of height.
            strides = (strides[1], strides[1])
        changes: dict[str, Any] = {
            "kernel_size": size,
            "strides": strides,
            "dilation_rate": dilation,
        }
        pads: Parts = []
        if layer.padding == "causal":
            changes["padding"] = "valid"
            amounts = ((0, 0), (dilation[1] * (size[1] - 1), 0))
            pads = [keras.layers.ZeroPadding2D(amounts, name=f"{layer.name}_past")]
        return _between_shapes(node, [*pads, _like(node, kind, **changes)])

    return parts


def _pool(kind: type) -> Callable[[Node], Parts]:
    def parts(node: Node) -> Parts:
        layer = node.layer
        changes = {"pool_size": _row(layer.pool_size), "strides": _row(layer.strides)}
        return _between_shapes(node, [_like(node, kind, **changes)])

    return parts


def _amounts(kind: type, argument: str) -> Callable[[Node], Parts]:
    def parts(node: Node) -> Parts:
        pair = tuple(getattr(node.layer, argument))
        return _between_shapes(
            node, [kind(((0, 0), pair), name=node.layer.name, data_format="channels_last")]
        )

    return parts


def _upsampling(node: Node) -> Parts:
    layer = node.layer
    enlarged = keras.layers.UpSampling2D((1, layer.size), name=layer.name)
    return _between_shapes(node, [enlarged])


def _dropout(node: Node) -> Parts:
    return _between_shapes(node, [_like(node, keras.layers.SpatialDropout2D)])


def _global_pool(kind: type) -> Callable[[Node], Parts]:
    def parts(node: Node) -> Parts:
        layer = node.layer
        pooled = kind(keepdims=layer.keepdims, name=layer.name, data_format="channels_last")
        between = _between_shapes(node, [pooled])
        return between if layer.keepdims else between[:-1]

    return parts


def dense_parts(node: Node) -> Parts | None:
    """Return the parts of a Dense on more than ``(n, features)``; None on that."""
    if len(node.shape) == 2:
        return None
    layer = node.layer
    config = layer.get_config()
    regularized = [
        f"{of}_{what}" for of in ("kernel", "bias") for what in ("regularizer", "constraint")
    ]
    made = keras.layers.Conv2D(
        layer.units,
        1,
        name=layer.name,
        dtype="float32",
        trainable=layer.trainable,
        **{name: config[name] for name in ("activation", "use_bias", *regularized)},
    )
    _say_likewise(layer, made)
    inputs = node.arguments[0].shape[-1]
    made.build((None, None, None, inputs))
    kernel, *bias = (ops.convert_to_numpy(weight) for weight in layer.weights)
    made.set_weights([kernel.reshape(1, 1, inputs, layer.units), *bias])
    return [made] if len(node.shape) == 4 else _between_shapes(node, [made])


def _between_shapes(node: Node, parts: Parts) -> Parts:
    """Return parts on images with the changes of shape in front and behind."""
    name = node.layer.name
    return [AsImage(name=f"{name}_image"), *parts, AsSequence(name=name)]


def axes_problem(layer: Any) -> str | None:
    """Return what of a layer may depend on the axes of its kernel, which gets more, or None."""
    for name, value in vars(layer).items():
        of_kernel = name.endswith(("_regularizer", "_constraint")) and not name.startswith(
            ("bias", "activity")
        )
        if of_kernel and not isinstance(value, (type(None), *_OF_EACH_WEIGHT)):
            known = ", ".join(kind.__name__ for kind in _OF_EACH_WEIGHT)
            return (
                f"its {name}, {type(value).__name__}, may depend on the axes of the kernel, which "
                f"becomes that of a Conv2D; use one of {known}, or the layer on images"
            )
    return None


def _problem(node: Node) -> str | None:
    layer = node.layer
    problem = channels_problem(layer) or axes_problem(layer)
    if problem is None and getattr(layer, "activity_regularizer", None) is not None:
        return "an activity_regularizer, which acts on a result that is folded away"
    return problem


for _handled, _parts in (
    (keras.layers.Conv1D, _convolution(keras.layers.Conv2D)),
    (keras.layers.DepthwiseConv1D, _convolution(keras.layers.DepthwiseConv2D)),
    (keras.layers.SeparableConv1D, _convolution(keras.layers.SeparableConv2D)),
    (keras.layers.MaxPooling1D, _pool(keras.layers.MaxPooling2D)),
    (keras.layers.AveragePooling1D, _pool(keras.layers.AveragePooling2D)),
    (keras.layers.GlobalMaxPooling1D, _global_pool(keras.layers.GlobalMaxPooling2D)),
    (keras.layers.GlobalAveragePooling1D, _global_pool(keras.layers.GlobalAveragePooling2D)),
    (keras.layers.ZeroPadding1D, _amounts(keras.layers.ZeroPadding2D, "padding")),
    (keras.layers.Cropping1D, _amounts(keras.layers.Cropping2D, "cropping")),
    (keras.layers.UpSampling1D, _upsampling),
    (keras.layers.SpatialDropout1D, _dropout),
):
    register_kind(Kind((_handled,), None, _problem, parts=_parts))
register_kind(Kind((AsImage,), lambda request: _of_any_length(request, 1)))
register_kind(Kind((AsSequence,), lambda request: _of_any_length(request)))
