"""Differentiable approximations of a quantized network, with slopes other than straight-through.

A k-bit activation is a staircase; its derivative is zero almost everywhere. The straight-through
estimator puts 1 inside the clip range and 0 outside, which misleads at low bits: a unit in the
middle of a step looks as movable as one at its edge. Slopes that rise near the edges do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import tensorflow as tf
import tf_keras

from tfdq.quantization import Grid, InputQuantizer, Node, QuantizeWrapper, read_graph
from tfdq.robustness.lean_gradients import before_activation, is_lean
from tfdq.robustness.targets import DifferentiableTarget, as_target

Values = Literal["exact", "smooth"]
# Finer staircases are so close to their clip that the straight-through slope serves.
_MOST_SMOOTHED_LEVELS = 16


def smooth_surrogate(
    model: tf_keras.Model,
    *,
    values: Values = "exact",
    temperature: float = 0.12,
    leak: float = 0.1,
) -> DifferentiableTarget:
    """A target to take gradients from when attacking a quantized network.

    Pass it as `surrogate=` to any gradient attack on the model, on its integer twin or on its
    ``.tflite`` file. Ranges are read when it is made: make a new one after further training.

    Args:
        model: Made by `tfdq.quantize_model`, its ranges observed.
        values: See `SmoothNetwork`.
        temperature: See `SmoothNetwork`.
        leak: See `SmoothNetwork`.

    Returns:
        The target; with ``"exact"`` values it is known to give the model's own logits, so that an
        attack on the model does not ask for them again.

    Raises:
        ValueError: The model is not made by `tfdq.quantize_model`, or an argument is out of range.

    Example:
        >>> run_attack("pgd", model, x, y, 8 / 255, surrogate=smooth_surrogate(model))
    """
    network = SmoothNetwork(model, values=values, temperature=temperature, leak=leak)
    return DifferentiableTarget(
        network,
        name=f"{model.name} with {values} values and smooth slopes",
        model=model,
        values_of=as_target(model) if values == "exact" else None,
    )


class SmoothNetwork:
    r"""A tfdq network whose activations are rounded along a smooth staircase.

    For the levels :math:`0, s, \dots, ns` the staircase is

    .. math:: \sigma_\tau(z) = s \sum_{j=1}^{n} \mathrm{sigmoid}\left(
        \frac{z - (j - 1/2)s}{\tau s}\right)

    the exact one as tau -> 0; its slope is a bump around the edge of each step, and wider bumps
    reach past both ends of the clip range. Activations of more than 16 levels keep the
    straight-through slope of 1, with `leak` outside the range.

    Args:
        model: Made by `tfdq.quantize_model`.
        values: ``"exact"``: the values are the network's own and only slopes are smooth (backward
            pass differentiable approximation, BPDA: Athalye et al. 2018); ``"smooth"``: the values
            are smooth too.
        temperature: tau, > 0, in steps.
        leak: Slope outside the clip range for activations of more than 16 levels, >= 0.

    Raises:
        ValueError: The model is not made by `tfdq.quantize_model`, or an argument is out of range.
    """

    def __init__(
        self, model: tf_keras.Model, *, values: Values, temperature: float, leak: float
    ) -> None:
        if values not in ("exact", "smooth"):
            raise ValueError(f"values must be 'exact' or 'smooth', got {values!r}")
        if not temperature > 0 or leak < 0:
            raise ValueError(f"need temperature > 0 and leak >= 0, got {temperature} and {leak}")
        # Read here, not in the trace, where variables have no values.
        self._graph = read_graph(model)
        if not any(isinstance(node.layer, QuantizeWrapper) for node in self._graph.nodes):
            raise ValueError(
                f"{model.name!r} was not made by tfdq.quantize_model: no quantizers to smooth"
            )
        self.grids = {
            node.index: node.layer.output_grid()
            for node in self._graph.nodes
            if isinstance(node.layer, QuantizeWrapper)
        }
        self._values = values
        self._temperature = temperature
        self._leak = leak

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        """Logits of float32 images [n, ...]."""
        values: dict[int, tf.Tensor] = {self._graph.inputs[0]: x}
        for node in self._graph.nodes:
            if node.index in values:
                continue
            inputs = [values[source] for source in node.inputs]
            values[node.index] = self._apply(node, inputs, self.grids.get(node.index))
        return values[self._graph.outputs[0]]

    def _apply(self, node: Node, inputs: list[tf.Tensor], grid: Grid | None) -> tf.Tensor:
        layer: Any = node.layer
        if isinstance(layer, InputQuantizer):
            return _straight_through(inputs[0], node.infer(inputs))
        if grid is None:
            return node.infer(inputs)
        before = _before_activation(layer, inputs[0] if len(inputs) == 1 else inputs)
        exact = _round(before, grid)
        if getattr(layer.layer, "fused_activation", "linear") == "linear":
            return _straight_through(before, exact)
        levels = grid.qmax - grid.qmin
        if levels < _MOST_SMOOTHED_LEVELS and self._values == "exact":
            return _on_staircase(before, exact, grid.scale, levels, self._temperature)
        if levels < _MOST_SMOOTHED_LEVELS:
            smooth = _staircase(before, grid.scale, levels, self._temperature)
        else:
            clipped = tf.clip_by_value(before, 0.0, grid.scale * levels)
            smooth = clipped + self._leak * (before - clipped)
        return smooth if self._values == "smooth" else _straight_through(smooth, exact)


def _straight_through(smooth: tf.Tensor, exact: tf.Tensor) -> tf.Tensor:
    return smooth + tf.stop_gradient(exact - smooth)


def _staircase(z: tf.Tensor, step: float, levels: int, temperature: float) -> tf.Tensor:
    total = tf.zeros_like(z)
    for level in range(levels):
        total += tf.sigmoid((z / step - (level + 0.5)) / temperature)
    return step * total


def _on_staircase(
    z: tf.Tensor, exact: tf.Tensor, step: float, levels: int, temperature: float
) -> tf.Tensor:
    """The value of `exact` with the slope of the smooth staircase, which is never computed."""

    @tf.custom_gradient
    def value(z: tf.Tensor, exact: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, None]:
            return upstream * staircase_slope(z, step, levels, temperature), None

        return tf.identity(exact), gradient

    return value(z, tf.stop_gradient(exact))


def staircase_slope(z: tf.Tensor, step: float, levels: int, temperature: float) -> tf.Tensor:
    r"""Slope of the smooth staircase of `SmoothNetwork`.

    .. math:: \sigma'_\tau(z) = \frac{1}{\tau} \sum_j p_j (1 - p_j), \quad
        p_j = \mathrm{sigmoid}\left(\frac{z - (j - 1/2)s}{\tau s}\right)

    Only the edges near z are summed; each other one would add less than exp(-12.5) / tau.

    Args:
        z: Before the activation.
        step: s, > 0.
        levels: Number of edges, >= 1.
        temperature: tau, > 0, in steps.

    Returns:
        Like `z`.
    """
    steps = z / step
    reach = max(1, math.ceil(12.5 * temperature - 0.5))
    nearest = tf.clip_by_value(tf.floor(steps), 0.0, levels - 1.0)
    total = tf.zeros_like(z)
    for away in range(-reach, reach + 1):
        edge = nearest + float(away)
        below = tf.sigmoid((steps - edge - 0.5) / temperature)
        there = tf.logical_and(edge >= 0.0, edge < levels)
        total += tf.where(there, below * (1.0 - below), 0.0)
    return total / temperature


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
    if is_lean(wrapper):
        return before_activation(wrapper, inputs)
    layer = wrapper.layer
    if wrapper.kernel_quantizer is not None:
        kernel = wrapper.kernel_quantizer(layer.trained_kernel, False, {})
        return layer.before_activation(inputs, False, kernel)
    if hasattr(layer, "before_activation"):
        return layer.before_activation(inputs, False)
    return layer(inputs, training=False)
