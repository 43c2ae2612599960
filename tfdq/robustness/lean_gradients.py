"""The input gradient of a quantized model at less cost: what only training needs is left out.

Keras' backward pass through a layer visits its output four times: quantizer, ReLU6, BatchNorm,
convolution. At inference BatchNorm's part is a factor of each channel, which belongs into the
kernel, and a fixed-range quantizer passes all that a ReLU6 with its range passes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras

from tfdq.quantization import FixedRangeQuantizer, Node, QuantizeWrapper, read_graph
from tfdq.quantization.layers import FusedKernel

_RELU6_RANGE = (0.0, 6.0)


class LeanNetwork:
    """A model's function, to be differentiated by its input.

    The values are the model's, bit for bit: the same operations in the same order. The gradients
    are its own up to the rounding of float32, since the kernel is scaled before the transposed
    convolution and not the gradient after it. Variables are read at each call.

    Args:
        model: Of tf_keras, with one input, some layers of it made by `tfdq.quantize_model`.

    Raises:
        ValueError: `model` is not a built graph of layers.
    """

    def __init__(self, model: tf_keras.Model) -> None:
        self._graph = read_graph(model)

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        """Outputs for float32 images [n, ...]."""
        values: dict[int, tf.Tensor] = {self._graph.inputs[0]: x}
        for node in self._graph.nodes:
            if node.index not in values:
                values[node.index] = _call(node, [values[source] for source in node.inputs])
        return values[self._graph.outputs[0]]


def lean_function(model: Any) -> Callable[[tf.Tensor], tf.Tensor] | None:
    """The `LeanNetwork` of a model that has anything to gain from it, else None."""
    if not isinstance(model, tf_keras.Model):
        return None
    try:
        network = LeanNetwork(model)
    except ValueError:  # not a graph of layers
        return None
    gains = any(is_lean(node.layer) for node in network._graph.nodes)
    return network if gains and len(network._graph.inputs) == 1 else None


def is_lean(layer: Any) -> bool:
    """Whether a layer has a form that costs less to differentiate."""
    return (
        isinstance(layer, QuantizeWrapper)
        and isinstance(layer.layer, FusedKernel)
        and getattr(layer.layer, "compute_dtype", "") == "float32"
    )


def _call(node: Node, inputs: list[tf.Tensor]) -> tf.Tensor:
    wrapper: Any = node.layer
    if not is_lean(wrapper):
        return node.infer(inputs)
    (x,) = inputs
    layer = wrapper.layer
    before = before_activation(wrapper, x)
    quantizer = wrapper.output_quantizer
    if (
        layer.fused_activation == "relu6"
        and isinstance(quantizer, FixedRangeQuantizer)
        and (quantizer.low, quantizer.high) == _RELU6_RANGE
    ):
        # The quantizer clamps to the same range: the ReLU6 before it would change no value.
        return _through_relu6(before, quantizer(tf.stop_gradient(before), False, {}))
    return wrapper.quantize_output(layer.activate(before))


def before_activation(wrapper: Any, x: tf.Tensor) -> tf.Tensor:
    """What a lean layer computes from its fake-quantized kernel, its activation left out."""
    kernel = tf.convert_to_tensor(wrapper.layer.trained_kernel)
    if wrapper.kernel_quantizer is not None:
        kernel = wrapper.kernel_quantizer(kernel, False, {})
    return _affine(wrapper.layer, x, kernel)


def _affine(layer: FusedKernel, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """Kernel, bias and BatchNorm; backwards only the kernel, with BatchNorm folded in."""
    fixed: Any = layer
    exact = fixed.apply_kernel(tf.stop_gradient(x), kernel)
    if fixed.use_bias:
        exact = tf.nn.bias_add(exact, fixed.bias)
    if fixed.batch_norm is not None:
        exact = fixed.batch_norm(exact, training=False)
    folded = fixed.folded_kernel(kernel)

    @tf.custom_gradient
    def value(x: tf.Tensor, exact: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, None]:
            with tf.GradientTape() as tape:
                tape.watch(x)
                linear = fixed.apply_kernel(x, folded)
            return tape.gradient(linear, x, upstream), None

        return tf.identity(exact), gradient

    return value(x, tf.stop_gradient(exact))


@tf.custom_gradient
def _through_relu6(before: tf.Tensor, rounded: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """The value of `rounded` with the gradient of relu6(before)."""

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, None]:
        return tf.raw_ops.Relu6Grad(gradients=upstream, features=before), None

    return tf.identity(rounded), gradient
