"""Interval bounds of a tf_keras network in TensorFlow, differentiable, to train with."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras

from tfdq.certificates.layer_maps import check_known_call, layer_activation
from tfdq.penalties.kernel_layers import has_kernel, unwrap
from tfdq.quantization.graph import Graph, Node

Box = tuple[tf.Tensor, tf.Tensor]

_layers = tf_keras.layers
_MONOTONE = (
    _layers.Flatten,
    _layers.Reshape,
    _layers.Permute,
    _layers.ReLU,
    _layers.LeakyReLU,
    _layers.ZeroPadding2D,
    _layers.Cropping2D,
    _layers.MaxPooling2D,
    _layers.AveragePooling2D,
    _layers.GlobalMaxPooling2D,
    _layers.GlobalAveragePooling2D,
    _layers.UpSampling2D,
    _layers.Add,
    _layers.Average,
    _layers.Concatenate,
)
_RANDOM = (_layers.Dropout, _layers.SpatialDropout2D, _layers.GaussianNoise)
_MONOTONE_NAMES = ("FusedReLU", "ConvexCombination", "InputQuantizer")
_RISING = (
    "linear",
    "relu",
    "relu6",
    "leaky_relu",
    "sigmoid",
    "hard_sigmoid",
    "tanh",
    "softplus",
    "softsign",
    "elu",
    "selu",
)


def check_box_propagation(graph: Graph) -> None:
    """Say whether every layer of a graph has an interval rule.

    Raises:
        ValueError: naming the first layer without one, or for several inputs or outputs.
    """
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise ValueError(
            "a model with one input and one output is bounded, this has "
            f"{len(graph.inputs)} and {len(graph.outputs)}"
        )
    for node in graph.nodes[: softmax_begins(graph)]:
        check_known_call(node.layer, node.call)
        inner = unwrap(node.layer)
        name = layer_activation(node.layer)
        kernel = has_kernel(node.layer)
        known = kernel or isinstance(
            inner,
            (
                _layers.InputLayer,
                _layers.BatchNormalization,
                _layers.Rescaling,
                _layers.Activation,
                *_MONOTONE,
                *_RANDOM,
            ),
        )
        if not known and type(inner).__name__ not in _MONOTONE_NAMES:
            raise ValueError(
                f"no interval rule for layer {node.layer.name!r} ({type(inner).__name__})"
            )
        _check_monotone(node.layer)
        last = node.index == graph.outputs[0]
        if name not in _RISING and not (kernel and last and name == "softmax"):
            raise ValueError(
                f"layer {node.layer.name!r}: activation {name!r} is not monotone, so it has no "
                f"interval rule; known are {', '.join(_RISING)}"
            )


def _check_monotone(layer: Any) -> None:
    """Say whether the arguments of a layer leave it monotone.

    Raises:
        ValueError: a negative slope, or an interpolation with negative weights.
    """
    inner = unwrap(layer)
    if isinstance(inner, _layers.LeakyReLU) and not float(inner.alpha) >= 0:
        raise ValueError(
            f"layer {layer.name!r}: alpha={float(inner.alpha)} is a falling slope, so it has no "
            "interval rule; alpha must be >= 0"
        )
    rising = ("nearest", "bilinear")
    if isinstance(inner, _layers.UpSampling2D) and inner.interpolation not in rising:
        raise ValueError(
            f"layer {layer.name!r}: {inner.interpolation!r} interpolation has negative weights, so "
            f"it has no interval rule; known are {', '.join(rising)}"
        )


def softmax_begins(graph: Graph) -> int:
    """Return how many nodes come before a softmax layer at the end, all if there is none."""
    last = unwrap(graph.nodes[graph.outputs[0]].layer)
    name = layer_activation(last)
    is_layer = isinstance(last, _layers.Softmax) or (
        isinstance(last, _layers.Activation) and name == "softmax"
    )
    return graph.outputs[0] if is_layer else len(graph.nodes)


def propagate_box(graph: Graph, low: tf.Tensor, high: tf.Tensor) -> dict[int, Box]:
    """Bound the output of every node before a last softmax, over a box of inputs.

    BatchNorm counts as at inference (moving statistics). A quantized layer counts with its
    fake-quantized kernel, and its output is rounded: rounding is monotone, and its straight-
    through gradient passes. Differentiable in the network's variables.

    Args:
        graph: a graph that `check_box_propagation` takes.
        low: the box' smallest inputs, ``(n, ...)``.
        high: its largest inputs.

    Returns:
        Smallest and largest output by node index.
    """
    boxes: dict[int, Box] = {graph.inputs[0]: (low, high)}
    for node in graph.nodes[: softmax_begins(graph)]:
        if node.index != graph.inputs[0]:
            boxes[node.index] = _bound(node, [boxes[i] for i in node.inputs])
    return boxes


def _bound(node: Node, taken: list[Box]) -> Box:
    """Bound one layer's output."""
    layer = node.layer
    inner = unwrap(layer)
    if has_kernel(layer):
        return _activated(layer, affine_box(layer, taken[0]))
    if isinstance(inner, _layers.BatchNormalization):
        factor, offset = batch_norm_affine(inner)
        return _activated(layer, _scaled(taken[0], factor, offset))
    if isinstance(inner, _layers.Rescaling):
        return _activated(layer, _scaled(taken[0], tf.constant(inner.scale), inner.offset))
    if isinstance(inner, _RANDOM):
        return taken[0]
    ends = []
    for side in (0, 1):
        values = [box[side] for box in taken]
        ends.append(layer(values if len(values) > 1 else values[0], training=False))
    return ends[0], ends[1]


def _scaled(box: Box, factor: tf.Tensor, offset: Any) -> Box:
    """Multiply a box by factors of any sign, and move it."""
    low, high = (side * factor for side in box)
    return tf.minimum(low, high) + offset, tf.maximum(low, high) + offset


def batch_norm_affine(norm: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the factor and offset that a BatchNormalization is at inference, as tensors."""
    factor = tf.math.rsqrt(norm.moving_variance + norm.epsilon)
    if norm.scale:
        factor = factor * norm.gamma
    offset = -norm.moving_mean * factor
    return factor, offset + norm.beta if norm.center else offset


def kernel_and_offset(layer: Any) -> tuple[tf.Tensor, tf.Tensor | float]:
    """Return what a layer multiplies by and adds at inference, BatchNorm folded in, as tensors.

    Args:
        layer: a layer with a kernel, or a quantize wrapper around one.

    Returns:
        The kernel in Keras' layout, fake-quantized in a quantized layer, and the offset of each
        output channel.
    """
    inner = unwrap(layer)
    bias: Any = inner.bias if inner.use_bias else 0.0
    if hasattr(layer, "penalized_kernel"):
        kernel = layer.penalized_kernel("deployed")
    else:
        name = "depthwise_kernel" if hasattr(inner, "depthwise_kernel") else "kernel"
        kernel = tf.convert_to_tensor(getattr(inner, name))
    norm = getattr(inner, "batch_norm", None)
    if norm is None:
        return kernel, bias
    factor, offset = batch_norm_affine(norm)
    return kernel, factor * bias + offset


def affine_box(layer: Any, box: Box) -> Box:
    """Bound a layer's affine part, before its activation: centre and radius."""
    kernel, offset = kernel_and_offset(layer)
    centre, radius = (box[1] + box[0]) / 2, (box[1] - box[0]) / 2
    middle = _linear(layer, centre, kernel) + offset
    spread = _linear(layer, radius, tf.abs(kernel))
    return middle - spread, middle + spread


def _linear(layer: Any, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """Apply a kernel the way a layer does."""
    inner = unwrap(layer)
    if isinstance(inner, _layers.Dense):
        return tf.tensordot(inputs, kernel, axes=1)
    if isinstance(inner, _layers.DepthwiseConv2D):
        return tf_keras.backend.depthwise_conv2d(
            inputs,
            kernel,
            strides=inner.strides,
            padding=inner.padding,
            dilation_rate=inner.dilation_rate,
        )
    return inner.convolution_op(inputs, kernel)


def _activated(layer: Any, box: Box) -> Box:
    """Apply a layer's activation and its quantizer to both ends; both are monotone."""
    inner = unwrap(layer)
    low, high = box
    if hasattr(inner, "activate"):
        low, high = inner.activate(low), inner.activate(high)
    if layer_activation(layer) not in ("linear", "softmax"):
        low, high = inner.activation(low), inner.activation(high)
    quantizer = getattr(layer, "output_quantizer", None)
    if quantizer is not None:
        variables = layer._output_variables
        low, high = (quantizer(end, False, variables) for end in (low, high))
    return low, high


def worst_logits(graph: Graph, boxes: dict[int, Box], labels: tf.Tensor) -> tf.Tensor:
    """Return logits at least as bad for the labels as any in the box.

    Behind a last dense layer the differences to the label's logit are bounded one by one, which
    is tighter than the logits' own bounds; the label's is then 0.

    Args:
        graph: the graph.
        boxes: from `propagate_box`.
        labels: int ``(n,)``.

    Returns:
        float32 ``(n, classes)``.
    """
    index = graph.outputs[0]
    if softmax_begins(graph) <= index:
        (index,) = graph.nodes[index].inputs
    node = graph.nodes[index]
    low, high = boxes[index]
    picked = tf.one_hot(labels, low.shape[-1], dtype=low.dtype)
    if not _is_last_dense(node):
        return picked * low + (1.0 - picked) * high
    kernel, offset = kernel_and_offset(node.layer)
    before = boxes[node.inputs[0]]
    centre, radius = (before[1] + before[0]) / 2, (before[1] - before[0]) / 2
    columns = tf.transpose(kernel)
    difference = columns[None] - tf.gather(columns, labels)[:, None]
    shift = offset - tf.gather(tf.broadcast_to(offset, (columns.shape[0],)), labels)[:, None]
    middle = tf.einsum("nkf,nf->nk", difference, centre)
    return middle + tf.einsum("nkf,nf->nk", tf.abs(difference), radius) + shift


def _is_last_dense(node: Node) -> bool:
    inner = unwrap(node.layer)
    name = layer_activation(node.layer)
    plain = getattr(inner, "fused_activation", "linear") == "linear"
    return isinstance(inner, _layers.Dense) and name in ("linear", "softmax") and plain


def ends_in_softmax(graph: Graph) -> bool:
    """Tell whether a model's output is probabilities."""
    last = unwrap(graph.nodes[graph.outputs[0]].layer)
    name = layer_activation(last)
    return isinstance(last, _layers.Softmax) or name == "softmax"
