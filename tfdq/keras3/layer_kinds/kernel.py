"""What convolutions and dense layers share: a quantized kernel, bias and BatchNorm, the penalty."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from tfdq.description import Kernel, Shape
from tfdq.keras3.graph import Node
from tfdq.keras3.layer_kinds.affine import AffineLayer
from tfdq.keras3.layer_kinds.base import (
    AT_REST,
    Box,
    Flow,
    Phase,
    estimates,
    integer_shape,
    observing,
)
from tfdq.keras3.layer_kinds.pointwise import load_norm, norm_arguments
from tfdq.keras3.layer_kinds.registry import (
    Request,
    Step,
    activation_problem,
    channels_problem,
)
from tfdq.keras3.learned_steps import LearnedSteps
from tfdq.keras3.penalty import KernelPenalty, scale_blind
from tfdq.keras3.ranges import SMALLEST_RANGE
from tfdq.keras3.rounding import round_through, with_gradient_of
from tfdq.penalties.direction_rate import DIRECTION_RATE
from tfdq.settings.quantization import KernelRange


class KernelLayer(AffineLayer):
    """A layer with a kernel of few bits.

    Args:
        weight_bits: bits of the kernel, 2 to 8.
        use_bias: whether it has a bias.
        kernel_trainable: whether kernel and bias train.
        per_channel: one step for each output channel, else one for the kernel.
        kernel_range: ``"max"``: a step follows the largest magnitude; ``"learned"``: it trains.
        penalty: settings of the `KernelPenalty`, or None.
        variables: for ``kernel`` and ``bias`` the configs of the regularizer and the constraint of
            the float layer.
    """

    depthwise = False
    groups = 1
    variable_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **AffineLayer.variable_groups,
        "kernel": ("kernel", "bias", "kernel_steps"),
    }

    def __init__(
        self,
        weight_bits: int = 8,
        use_bias: bool = True,
        kernel_trainable: bool = True,
        per_channel: bool = True,
        kernel_range: KernelRange = "max",
        penalty: dict[str, Any] | None = None,
        variables: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.weight_bits = int(weight_bits)
        self.use_bias = bool(use_bias)
        self.kernel_trainable = bool(kernel_trainable)
        self.per_channel = bool(per_channel)
        self.kernel_range = kernel_range
        self.penalty = penalty
        self.variable_settings = variables or {}
        self._largest = float(2 ** (self.weight_bits - 1) - 1)

    @abstractmethod
    def kernel_shape(self, shape: Shape) -> tuple[int, ...]:
        """Return the shape of the kernel, for a source of a shape."""

    def deployed_shape(self, shape: Shape) -> tuple[int, ...]:
        """Return the shape of the kernel."""
        return self.kernel_shape(shape)

    def build(self, input_shape: Any) -> None:
        """Create kernel, bias, BatchNorm, range and deployed constants."""
        shape = integer_shape(input_shape)
        channels = self.result_shape(shape)[-1]
        assert channels is not None
        if "kernel" not in self.shares:
            self.kernel = self._add_trained("kernel", self.kernel_shape(shape), "glorot_uniform")
            self.bias = self._add_trained("bias", (channels,), "zeros") if self.use_bias else None
            self.kernel_steps = None
            if self.kernel_range == "learned":
                self.kernel_steps = LearnedSteps(
                    self,
                    "kernel_step",
                    (self._channels,) if self.per_channel else (),
                    self._largest,
                    self.kernel_trainable,
                )
        self.kernel_penalty = None
        if self.penalty is not None:
            strides = getattr(self, "strides", (1, 1))
            self.kernel_penalty = KernelPenalty(
                self, self.penalty, self.kernel_shape(shape), self.depthwise, strides, self.groups
            )
        super().build(input_shape)

    def _add_trained(self, name: str, shape: tuple[int, ...], start: str) -> Any:
        settings = self.variable_settings.get(name, {})
        return self.add_weight(
            name=name,
            shape=shape,
            initializer=start,
            regularizer=keras.regularizers.get(settings.get("regularizer")),
            constraint=keras.constraints.get(settings.get("constraint")),
            trainable=self.kernel_trainable,
            dtype="float32",
            autocast=False,
        )

    def _columns(self, kernel: Any) -> Any:
        """Return a kernel as ``(n, channels)``."""
        return ops.reshape(kernel, (-1, self._channels))

    @property
    def _channels(self) -> int:
        last = self.kernel.shape[-2:] if self.depthwise else self.kernel.shape[-1:]
        return int(np.prod(last))

    def _steps(self, columns: Any, begin: bool = False) -> Any:
        """Return the kernel's steps.

        Args:
            columns: the kernel, ``(n, channels)``.
            begin: let learned steps start that have not.
        """
        axis = 0 if self.per_channel else None
        if self.kernel_steps is not None:
            magnitudes = ops.mean(ops.abs(columns), axis=axis)
            if begin:
                self.kernel_steps.begin(magnitudes)
            shared = math.prod(columns.shape[:1] if self.per_channel else columns.shape)
            return self.kernel_steps.present(shared, magnitudes)
        magnitude = ops.max(ops.abs(columns), axis=axis)
        return ops.stop_gradient(ops.maximum(magnitude, SMALLEST_RANGE)) / self._largest

    def train(self, flow: Any, phase: Phase) -> Flow:
        """Return the result in training, and add the penalty to the losses."""
        q, step = flow
        columns, integers, steps = self._quantized(begin=True)
        acc = self.accumulate(q, ops.reshape(integers, self.kernel.shape))
        slope, offset = self.affine_in_training(acc, step * steps, self.bias, phase)
        if self.kernel_penalty is not None:
            training = not observing.get() and estimates.get() is None
            self.add_loss(self._penalty(self.kernel_penalty, columns, integers, steps, training))
        return self.round_to_grid(acc, slope, offset, phase)

    def _quantized(self, begin: bool = False) -> tuple[Any, Any, Any]:
        """Return the kernel, ``(n, channels)``, its integers, likewise, and their steps.

        Args:
            begin: let learned steps start that have not.
        """
        columns = self._columns(ops.convert_to_tensor(self.kernel))
        steps = self._steps(columns, begin)
        integers = round_through(ops.clip(columns / steps, -self._largest, self._largest))
        return columns, integers, steps

    def at_rest(self, step: Any) -> tuple[Any, Any, Any]:
        """Return the kernel's integers, and slope and offset of each channel on their sums.

        Args:
            step: of the source.

        Returns:
            The integers in the kernel's shape, and ``(channels,)`` twice, of the statistics as they
            are: a result before activation and rounding is ``sums * slope + offset``.
        """
        _, integers, steps = self._quantized()
        unit = step * steps * ops.ones(self.deployed_factor.shape)
        slope, offset = self.affine_in_training(unit, unit, self.bias, AT_REST)
        return ops.reshape(integers, self.kernel.shape), slope, offset

    def interval(self, box: Any) -> Box:
        """Return the bounds from the box' centre and radius: ``K c`` and ``|K| r``."""
        (low, step), (high, _) = box
        kernel, slope, offset = self.at_rest(step)
        middle = self.accumulate((low + high) / 2.0, kernel)
        spread = self.accumulate((high - low) / 2.0, ops.abs(kernel))
        return self.round_box(middle - spread, middle + spread, slope, offset)

    def infer(self, flow: Any) -> Flow:
        """Return what the deployed operator gives, and add the penalty to the losses."""
        if self.kernel_penalty is not None:
            columns, integers, steps = self._quantized()
            self.add_loss(self._penalty(self.kernel_penalty, columns, integers, steps, False))
        return super().infer(flow)

    def _penalty(
        self, penalty: KernelPenalty, columns: Any, integers: Any, steps: Any, training: bool
    ) -> Any:
        """Return the penalty on the kernel that it is placed on."""
        on = penalty.on
        if on == "deployed" and self.kernel_steps is not None:
            # The gradient of a learned step and of the kernel, none where it is clipped.
            columns = integers * steps
        if on != "kernel" and self.norm is not None and self.norm_follows and not self.frozen:
            columns = scale_blind(columns, 1.0 if self.gamma is None else DIRECTION_RATE)
        if on == "deployed" and self.kernel_steps is None:
            columns = with_gradient_of(integers * steps, columns)
        if on != "kernel" and self.norm is not None:
            factor = ops.rsqrt(ops.convert_to_tensor(self.moving_variance) + self.norm["epsilon"])
            columns = columns * (factor if self.gamma is None else factor * self.gamma)
        return penalty(ops.reshape(columns, self.kernel.shape), training)

    def quantized_kernel(self) -> Kernel:
        """Return the kernel's integers and steps, with bias and BatchNorm, in NumPy."""
        kernel = np.asarray(ops.convert_to_numpy(self.kernel), np.float32)
        columns = kernel.reshape(-1, self._channels)
        axis = 0 if self.per_channel else None
        if self.kernel_steps is None:
            magnitude = np.maximum(np.abs(columns).max(axis=axis), np.float32(SMALLEST_RANGE))
            steps = (magnitude / np.float32(self._largest)).astype(np.float32)
        else:
            steps = self.kernel_steps.deployed(np.abs(columns).mean(axis=axis))
        integers = np.clip(np.rint(columns / steps), -self._largest, self._largest)
        multiplier, offset = self.folded(self.bias)
        return Kernel(
            integers.astype(np.int8).reshape(kernel.shape),
            steps,
            multiplier,
            offset,
            self.weight_bits,
        )

    @property
    def weight_bits_on_record(self) -> int:
        """Bits of the kernel."""
        return self.weight_bits

    @property
    def penalty_on_record(self) -> float | None:
        """Weight of the penalty, which one of the calls of a kernel adds; None without one."""
        held: Any = self if self.kernel_penalty is not None else self.holder("kernel")
        return None if held.kernel_penalty is None else held.kernel_penalty.weight

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {
            **super().get_config(),
            "weight_bits": self.weight_bits,
            "use_bias": self.use_bias,
            "kernel_trainable": self.kernel_trainable,
            "per_channel": self.per_channel,
            "kernel_range": self.kernel_range,
            "penalty": self.penalty,
            "variables": self.variable_settings,
        }


def channel_groups(count: int, splits: int) -> list[tuple[int, int]]:
    """Return the first and the last plus one of each of a number of equal groups."""
    ends = np.linspace(0, count, min(splits, count) + 1).astype(int)
    return [(int(a), int(b)) for a, b in pairwise(ends)]


def convolution_problem(node: Node) -> str | None:
    """Return what keeps a layer with a kernel from being quantized, or None."""
    layer = node.layer
    problem = channels_problem(layer) or activation_problem(layer)
    if problem:
        return problem
    if getattr(layer, "activity_regularizer", None) is not None:
        return "an activity_regularizer, which acts on a result that is folded away"
    if isinstance(layer, keras.layers.Dense):
        rank = len(node.shape)
        return f"a Dense on a tensor of rank {rank}; Reshape it first" if rank > 4 else None
    if layer.padding not in ("same", "valid"):
        return f"padding {layer.padding!r}; use same or valid"
    depthwise = (keras.layers.DepthwiseConv2D, keras.layers.SeparableConv2D)
    if isinstance(layer, depthwise) and layer.strides[0] != layer.strides[1]:
        return f"strides {layer.strides}; those of a depthwise convolution must be equal"
    return None


def kernel_arguments(request: Request) -> dict[str, Any]:
    """Return the arguments of a quantized layer with a kernel."""
    layer, step = request.layer, request.step
    config = layer.get_config()
    role = "depthwise" if isinstance(layer, keras.layers.DepthwiseConv2D) else "kernel"
    arguments: dict[str, Any] = {
        "output": request.output,
        "activation": request.activation,
        "weight_bits": request.bits[0],
        "kernel_range": request.settings.kernel_range,
        "use_bias": layer.use_bias,
        "penalty": None
        if request.repeated
        else request.settings.penalty(role == "depthwise", getattr(layer, "strides", (1, 1))),
        "variables": {
            name: {what: config.get(f"{own}_{what}") for what in ("regularizer", "constraint")}
            for name, own in (("kernel", role), ("bias", "bias"))
        },
        **request.common,
    }
    trains = [bool(layer.trainable)]
    if step.norm is not None:
        arguments.update(norm_arguments(request, step.norm, step.norm_inference))
        trains.append(bool(step.norm.trainable))
    if any(trains):
        arguments["kernel_trainable"] = trains[0]
        arguments["norm_trainable"] = trains[-1]
    else:
        arguments["trainable"] = False
    return arguments


def load_kernel(step: Step, layer: Any) -> None:
    """Copy the variables of a layer with a kernel, and of its BatchNormalization."""
    layer.kernel.assign(ops.convert_to_numpy(step.node.layer.kernel))
    if layer.bias is not None:
        layer.bias.assign(ops.convert_to_numpy(step.node.layer.bias))
    if step.norm is not None:
        load_norm(step.norm, layer)
