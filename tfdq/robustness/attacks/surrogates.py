"""Differentiable stand-ins of a quantized network, with other roundings than the straight-through.

A k-bit activation is a staircase; its derivative is zero almost everywhere. The straight-through
estimator puts 1 inside the clip range and 0 outside, which misleads at low bits: a unit clipped to
zero can never be woken up, and a unit in the middle of a step looks as movable as one at its edge.
"""

from __future__ import annotations

from typing import Any, Literal

import tensorflow as tf
import tf_keras

from tfdq.quantization import Grid, InputQuantizer, QuantizeWrapper, read_graph

Forward = Literal["exact", "smooth"]
_MOST_SIGMOIDS = 16


class SmoothSurrogate:
    r"""A tfdq network whose activations are rounded along a smooth staircase.

    For the levels :math:`0, s, \dots, ns` the staircase is

    .. math:: \sigma_\tau(z) = s \sum_{j=1}^{n} \mathrm{sigmoid}\left(
        \frac{z - (j - 1/2)s}{\tau s}\right)

    the exact one as tau -> 0; as tau grows its slope tends to a wide bump that reaches past both
    ends of the clip range. Activations of more than 16 levels, where the staircase is fine, keep the
    straight-through slope of 1, with `leak` outside the range.

    Args:
        model: Made by `tfdq.quantize_model`.
        forward: ``"exact"``: the values are the network's own and only slopes are smooth (BPDA,
            Athalye et al. 2018); ``"smooth"``: the values are smooth too.
        temperature: tau, > 0; the attribute of the same name can be assigned between calls
            without retracing.
        leak: Slope outside the clip range for activations of more than 16 levels.

    Raises:
        ValueError: The model is not made by `tfdq.quantize_model`.
    """

    def __init__(
        self,
        model: tf_keras.Model,
        *,
        forward: Forward = "exact",
        temperature: float = 0.5,
        leak: float = 0.1,
    ) -> None:
        self.name = f"{model.name} ({forward} values, smooth slopes)"
        self._graph = read_graph(model)
        if not any(isinstance(node.layer, QuantizeWrapper) for node in self._graph.nodes):
            raise ValueError(f"{model.name!r} is not quantized; it needs no smooth surrogate")
        self._grids = {
            node.index: node.layer.output_grid()
            for node in self._graph.nodes
            if isinstance(node.layer, QuantizeWrapper)
        }
        self.forward = forward
        self.temperature = tf.Variable(temperature, trainable=False, dtype=tf.float32)
        self.leak = leak

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        """Logits of float32 images [n, ...]."""
        values: dict[int, tf.Tensor] = {self._graph.inputs[0]: x}
        for node in self._graph.nodes:
            if node.index in values:
                continue
            inputs = [values[source] for source in node.inputs]
            taken = inputs[0] if len(inputs) == 1 else inputs
            values[node.index] = self._apply(node.layer, taken, self._grids.get(node.index))
        return values[self._graph.outputs[0]]

    def _apply(self, layer: Any, inputs: Any, grid: Grid | None) -> tf.Tensor:
        if isinstance(layer, InputQuantizer):
            return _straight_through(inputs, layer(inputs, training=False))
        if grid is None:
            return layer(inputs, training=False)
        before = _before_activation(layer, inputs)
        exact = _round(before, grid)
        if getattr(layer.layer, "fused_activation", "linear") == "linear":
            return _straight_through(before, exact)
        levels = grid.qmax - grid.qmin
        if levels < _MOST_SIGMOIDS:
            smooth = _staircase(before, grid.scale, levels, self.temperature)
        else:
            clipped = tf.clip_by_value(before, 0.0, grid.scale * levels)
            smooth = clipped + self.leak * (before - clipped)
        return smooth if self.forward == "smooth" else _straight_through(smooth, exact)


def _straight_through(smooth: tf.Tensor, exact: tf.Tensor) -> tf.Tensor:
    return smooth + tf.stop_gradient(exact - smooth)


def _staircase(z: tf.Tensor, step: float, levels: int, temperature: tf.Tensor) -> tf.Tensor:
    total = tf.zeros_like(z)
    for level in range(levels):
        total += tf.sigmoid((z / step - (level + 0.5)) / temperature)
    return step * total


def _round(x: tf.Tensor, grid: Grid) -> tf.Tensor:
    """Rounds to a grid as the fake-quantize kernels do."""
    low = grid.scale * (grid.qmin - grid.zero_point)
    high = grid.scale * (grid.qmax - grid.zero_point)
    bits = (grid.qmax - grid.qmin).bit_length()
    if bits == 1:
        return tf.where(x * (1.0 / high) + 0.5 >= 1.0, high, tf.zeros_like(x))
    return tf.quantization.fake_quant_with_min_max_args(x, low, high, num_bits=bits)


def _before_activation(wrapper: QuantizeWrapper, inputs: Any) -> tf.Tensor:
    """What a wrapped layer computes from its fake-quantized kernel, its activation left out."""
    layer = wrapper.layer
    takes_kernel = wrapper.kernel_quantizer is not None
    activation = getattr(layer, "fused_activation", None)
    if takes_kernel:
        layer.use_kernel(wrapper.kernel_quantizer(layer.trained_kernel, False, {}))
    if activation is not None:
        layer.fused_activation = "linear"
    try:
        return layer(inputs, training=False)
    finally:
        if activation is not None:
            layer.fused_activation = activation
        if takes_kernel:
            layer.use_kernel(None)
