"""Layers that compute sums of products and an affine map of each channel, rounded once.

In training the sums are of integers, and bias, BatchNorm, scales and the output's quantizer act on
them as one map per channel. At inference the sums, the bias in units of the sums, one float32
factor per channel and one rounding are those of the deployed kernel.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from tfdq.batch_statistics import PooledStatistics
from tfdq.description import Call, Shape
from tfdq.grid import Grid
from tfdq.keras3.layer_kinds.base import (
    AT_REST,
    Box,
    Flow,
    Phase,
    QuantizedLayer,
    Sealing,
    estimates,
    integer_shape,
)
from tfdq.keras3.learned_steps import LearnedRange, range_of
from tfdq.keras3.ranges import RangeSettings
from tfdq.keras3.rounding import between, round_through, with_gradient_of
from tflite_export.ir.graph import Operator
from tflite_export.ir.requantization import requantization_scale

_LOG = logging.getLogger("tfdq")
_EXACT = 2**24
_HALF = 2**16
WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")


class AffineLayer(QuantizedLayer):
    """A layer whose deployed form is one multiply-accumulate operator.

    Args:
        output: `RangeSettings` of the result.
        activation: ``"linear"``, ``"relu"`` or ``"relu6"``.
        norm: the config of the BatchNormalization that is taken in, or None.
        norm_trainable: whether its weights train.
        norm_follows: whether it takes the statistics of a batch, and follows them.
        splits: number of groups of input channels whose sums are exact in float32 each.
    """

    sealed_sources = 1
    variable_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "norm": ("gamma", "beta", "moving_mean", "moving_variance")
    }

    def __init__(
        self,
        output: RangeSettings | dict[str, Any],
        activation: str = "linear",
        norm: dict[str, Any] | None = None,
        norm_trainable: bool = True,
        norm_follows: bool = True,
        splits: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.output_settings = RangeSettings.of(output)
        self.activation = activation
        self.norm = norm
        self.norm_trainable = bool(norm_trainable)
        self.norm_follows = bool(norm_follows)
        self.splits = int(splits)

    @abstractmethod
    def accumulate(self, q: Any, kernel: Any) -> Any:
        """Return the sums of products of integers, float32."""

    @abstractmethod
    def deployed_shape(self, shape: Shape) -> tuple[int, ...]:
        """Return the shape of the deployed weights, for a source of a shape."""

    @abstractmethod
    def stored_weights(self, operator: Operator, weights: np.ndarray) -> np.ndarray:
        """Return an operator's weights in the layer's own layout."""

    def parts(self, q: Any, kernel: Any) -> list[tuple[Any, Any]]:
        """Return the integers and weights of each group of input channels."""
        return [(q, kernel)]

    def build(self, input_shape: Any) -> None:
        """Create the range, the BatchNorm's variables and the deployed constants."""
        shape = integer_shape(input_shape)
        channels = self.result_shape(shape)[-1]
        assert channels is not None
        self._build_norm(channels)
        self.range = range_of(self, self.output_settings)
        self.deployed_weights = self.add_constant("weights", self.deployed_shape(shape))
        self.deployed_bias_high = self.add_constant("bias_high", (channels,))
        self.deployed_bias_low = self.add_constant("bias_low", (channels,))
        self.deployed_factor = self.add_constant("factor", (channels,))
        self.build_seal()

    def _build_norm(self, channels: int) -> None:
        norm = self.norm
        self.gamma = self.beta = None
        if norm is None or "norm" in self.shares:
            return

        def add(name: str, start: str, trainable: bool, role: str = "") -> Any:
            return self.add_weight(
                name=name,
                shape=(channels,),
                initializer=start,
                regularizer=keras.regularizers.get(norm.get(f"{role}_regularizer")),
                constraint=keras.constraints.get(norm.get(f"{role}_constraint")),
                trainable=trainable,
                dtype="float32",
                autocast=False,
            )

        if norm["scale"]:
            self.gamma = add("gamma", "ones", self.norm_trainable, "gamma")
        if norm["center"]:
            self.beta = add("beta", "zeros", self.norm_trainable, "beta")
        self.moving_mean = add("moving_mean", "zeros", False)
        self.moving_variance = add("moving_variance", "ones", False)

    def affine_in_training(self, acc: Any, unit: Any, bias: Any, phase: Phase) -> tuple[Any, Any]:
        """Return the slope and the offset of each channel from its sums to its results.

        Args:
            acc: the sums.
            unit: what one unit of the sums is worth, a scalar or ``(channels,)``.
            bias: of the layer, ``(channels,)``, or None.
            phase: says whether BatchNorm takes the batch's statistics, and follows them.
        """
        offset = ops.zeros(acc.shape[-1]) if bias is None else ops.convert_to_tensor(bias)
        if self.norm is None:
            return unit * ops.ones(acc.shape[-1]), offset
        holder = self.holder("norm")
        if phase.statistics and self.norm_follows and holder.trainable:
            mean, variance = ops.moments(acc, axes=list(range(len(acc.shape) - 1)))
            mean, variance = mean * unit + offset, variance * ops.square(unit)
            found = estimates.get()
            if found is None:
                self._follow(mean, variance)
            else:
                batch = (ops.convert_to_numpy(moment) for moment in (mean, variance))
                found.setdefault(holder, PooledStatistics()).take(acc.shape[0], *batch)
        else:
            mean, variance = (
                ops.convert_to_tensor(v) for v in (self.moving_mean, self.moving_variance)
            )
        factor = ops.rsqrt(variance + self.norm["epsilon"])
        if self.gamma is not None:
            factor = factor * self.gamma
        offset = (offset - mean) * factor
        if self.beta is not None:
            offset = offset + self.beta
        return unit * factor, offset

    def _follow(self, mean: Any, variance: Any) -> None:
        """Move the statistics towards those of a batch; those of a new BatchNorm become them."""
        assert self.norm is not None
        momentum = self.norm["momentum"]
        untouched = ops.logical_and(
            ops.all(ops.equal(self.moving_mean, 0.0)), ops.all(ops.equal(self.moving_variance, 1.0))
        )
        for variable, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
            batch = ops.stop_gradient(batch)
            moved = variable * momentum + batch * (1.0 - momentum)
            variable.assign(ops.where(untouched, batch, moved))

    def folded(self, bias: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return the affine map that bias and BatchNorm are at inference.

        Returns:
            float64 multiplier and offset, ``(channels,)`` each.
        """
        channels = self.deployed_factor.shape[0]
        offset = np.zeros(channels) if bias is None else _float64(bias)
        if self.norm is None:
            return np.ones(channels), offset
        multiplier = 1.0 / np.sqrt(_float64(self.moving_variance) + self.norm["epsilon"])
        if self.gamma is not None:
            multiplier = multiplier * _float64(self.gamma)
        offset = (offset - _float64(self.moving_mean)) * multiplier
        return multiplier, offset if self.beta is None else offset + _float64(self.beta)

    def round_to_grid(self, acc: Any, slope: Any, offset: Any, phase: Phase) -> Flow:
        """Return the activated and rounded results of sums; the range follows them."""
        if isinstance(self.range, LearnedRange):
            values = acc * slope + offset
            values = ops.relu6(values) if self.activation == "relu6" else ops.relu(values)
            steps = self.range.take(values, phase.ranges)
            scaled = between(values * (1.0 / steps.step), steps.low, steps.high)
            return round_through(scaled), steps.step
        axes = tuple(range(len(acc.shape) - 1))
        if self.output_settings.fixed is None:
            sums = ops.stop_gradient(acc)
            ends = [
                ops.stop_gradient(slope) * end(sums, axis=axes) + ops.stop_gradient(offset)
                for end in (ops.min, ops.max)
            ]
            low = ops.min(ops.minimum(*ends))
            high = ops.max(ops.maximum(*ends))
            if self.activation != "linear":
                low, high = ops.maximum(low, 0.0), ops.maximum(high, 0.0)
            if self.activation == "relu6":
                high = ops.minimum(high, 6.0)
            steps = self.range.observe(low, high, phase.ranges)
        else:
            steps = self.range.present()
        low, high = steps.low, steps.high
        if self.activation != "linear":
            low = ops.maximum(low, 0.0)
        if self.activation == "relu6":
            high = ops.minimum(high, 6.0 / steps.step)
        values = acc * (slope / steps.step) + offset / steps.step
        return round_through(between(values, low, high)), steps.step

    def round_box(self, low: Any, high: Any, slope: Any, offset: Any) -> Box:
        """Return the results of the ends of sums; where the slope falls they change places.

        Args:
            low: lowest sums.
            high: highest sums.
            slope: of each channel, ``(channels,)``.
            offset: of each channel.
        """
        rises = slope >= 0
        ends = ops.where(rises, low, high), ops.where(rises, high, low)
        lowest, highest = (self.round_to_grid(end, slope, offset, AT_REST) for end in ends)
        return lowest, highest

    def infer(self, flow: Any) -> Flow:
        """Return what the deployed operator gives."""
        q, step = flow
        sums = [
            self.accumulate(*part)
            for part in self.parts(q, ops.convert_to_tensor(self.deployed_weights))
        ]
        bias = (self.deployed_bias_high * _HALF) + self.deployed_bias_low
        total = ops.cast(self.deployed_bias_high, "int32") * _HALF + ops.cast(
            self.deployed_bias_low, "int32"
        )
        smooth: Any = bias
        for acc in sums:
            total = total + ops.cast(ops.stop_gradient(acc), "int32")
            smooth = smooth + acc
        bounds = ops.convert_to_tensor(self.sealed_bounds)
        exact = ops.round(ops.cast(total, "float32") * self.deployed_factor)
        q = with_gradient_of(
            between(exact, bounds[0], bounds[1]),
            between(smooth * self.deployed_factor, bounds[0], bounds[1]),
        )
        return q, self.deployed_step(step)

    def grid(self) -> Grid:
        """Return the grid of the result."""
        return self.range.grid()

    def describe(self, sources: tuple[int, ...], shape: Shape) -> Call:
        """Return the layer's entry in the description of a model."""
        return Call(
            self.name,
            self.computation(),
            sources,
            shape,
            self.grid(),
            self.activation,
            (self.weight_bits_on_record, self.output_settings.bits),
            self.penalty_on_record,
        )

    @property
    def weight_bits_on_record(self) -> int | None:
        """Bits of the kernel; None without one."""
        return None

    @property
    def penalty_on_record(self) -> float | None:
        """Weight of the penalty; None without one."""
        return None

    def seal(self, sealing: Sealing) -> None:
        """Take weights, bias and factor from the operator that the layer became."""
        operator = next(op for op in sealing.operators if op.kind in WEIGHTED)
        source, weights, biases = (sealing.graph.tensors[i] for i in operator.inputs)
        output = sealing.graph.tensors[operator.outputs[0]]
        assert weights.data is not None
        assert weights.quantization is not None
        assert biases.data is not None
        stored = self.stored_weights(operator, weights.data).astype(np.float32)
        factor = self.of_channels(
            requantization_scale(source.scale, weights.quantization.scale, output.scale)
        )
        channels = self.deployed_factor.shape
        bias = np.broadcast_to(self.of_channels(biases.data.astype(np.int64)), channels)
        high = bias // _HALF
        self._check_sums(stored, max(abs(end) for end in sealing.source_bounds[0]))
        self.deployed_weights.assign(stored)
        self.deployed_bias_high.assign(high.astype(np.float32))
        self.deployed_bias_low.assign((bias - high * _HALF).astype(np.float32))
        self.deployed_factor.assign(np.broadcast_to(factor, channels))
        self.set_seal(sealing)

    def of_channels(self, values: np.ndarray) -> np.ndarray:
        """Return an operator's value of each of its channels as those of the layer's channels."""
        return values

    def _check_sums(self, weights: np.ndarray, largest: int) -> None:
        """Split the sums where float32 would not hold them exactly, and name the layer once."""
        before, exact = self.splits, False
        while not exact:
            parts = self.numpy_parts(weights)
            sums = [np.abs(part).reshape(-1, part.shape[-1]).sum(0).max() for part in parts]
            exact = largest * max(sums) < _EXACT or len(parts) < self.splits
            self.splits += 0 if exact else 1
        if self.splits > before:
            _LOG.info(
                "layer %r adds up more than float32 holds exactly; its sums have %d parts now",
                self.name,
                self.splits,
            )

    def numpy_parts(self, weights: np.ndarray) -> list[np.ndarray]:
        """Return the weights of each group of input channels, output channels last."""
        return [weights]

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {
            **super().get_config(),
            "output": self.output_settings.config(),
            "activation": self.activation,
            "norm": self.norm,
            "norm_trainable": self.norm_trainable,
            "norm_follows": self.norm_follows,
            "splits": self.splits,
        }


def _float64(variable: Any) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(variable), np.float64)
