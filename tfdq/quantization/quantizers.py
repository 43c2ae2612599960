"""k-bit quantizers with straight-through gradients, as tfmot ``Quantizer`` classes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, get_args

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras

from tfdq.grid import Grid, nudged_grid

Variables = dict[str, tf.Variable]
RangeUpdate = Literal["moving_average", "extremes"]
# Below this magnitude a channel counts as dead; its scale must still be a normal float32.
SMALLEST_RANGE = 1e-12
RANGE_DECAY = 0.99

_observing: ContextVar[bool] = ContextVar("observing", default=False)

register = tf_keras.saving.register_keras_serializable(package="tfdq")


def check_bits(bits: int, low: int, high: int, what: str) -> int:
    """Return a bit width as an int, or say what is allowed.

    Raises:
        ValueError: ``bits`` is not an integer in ``low..high``.
    """
    if isinstance(bits, bool) or not isinstance(bits, (int, np.integer)):
        raise ValueError(f"{what} must be an integer in {low}..{high}, got {bits!r}")
    if not low <= bits <= high:
        raise ValueError(f"{what} must be in {low}..{high}, got {bits}")
    return int(bits)


@contextmanager
def observing() -> Iterator[None]:
    """Let every ``ObservedRangeQuantizer`` called eagerly inside update its range."""
    token = _observing.set(True)
    try:
        yield
    finally:
        _observing.reset(token)


@tf.custom_gradient
def _one_bit(x: tf.Tensor, high: tf.Tensor) -> tuple[tf.Tensor, Any]:
    """Round to {0, high}; the gradient passes where 0 <= x <= high."""

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        inside = tf.logical_and(x >= 0.0, x <= high)
        return tf.where(inside, upstream, tf.zeros_like(upstream)), tf.zeros_like(high)

    # floor(x/s + 1/2), as the fake-quantize kernels round.
    return tf.where(x * (1.0 / high) + 0.5 >= 1.0, high, tf.zeros_like(x)), gradient


def _fake_quantize(x: tf.Tensor, low: Any, high: Any, bits: int) -> tf.Tensor:
    """Fake-quantize onto ``nudged_grid(low, high, bits)`` in float32, then restore the dtype."""
    wide = tf.cast(x, tf.float32)
    if bits == 1:
        quantized = _one_bit(wide, tf.convert_to_tensor(high, tf.float32))
    elif isinstance(low, float):
        quantized = tf.quantization.fake_quant_with_min_max_args(wide, low, high, num_bits=bits)
    else:
        quantized = tf.quantization.fake_quant_with_min_max_vars(wide, low, high, num_bits=bits)
    return tf.cast(quantized, x.dtype)


def round_as_runtime(
    x: tf.Tensor, low: tf.Tensor | float, high: tf.Tensor | float, bits: int
) -> tf.Tensor:
    """Return ``x`` on the grid of a range, rounded as integer runtimes round their float input.

    They compute ``rint(x * (1 / scale))`` in float32, ties to even; fake-quantize takes ties up.
    Resized images often lie half-way between two steps. The gradient is that of no rounding.

    Args:
        x: real numbers.
        low: lower end of the range; ``low = high``: there is none yet, ``x`` passes.
        high: upper end.
        bits: 2..8.
    """
    wide = tf.cast(x, tf.float32)
    levels = float(2**bits - 1)
    low, high = (tf.convert_to_tensor(end, tf.float32) for end in (low, high))
    known = high > low
    scale = tf.where(known, (high - low) / levels, 1.0)
    zero = tf.clip_by_value(tf.floor(0.0 - low / scale + 0.5), 0.0, levels)
    steps = tf.clip_by_value(tf.round(wide * (1.0 / scale)), -zero, levels - zero)
    return tf.cast(tf.where(known, steps * scale, wide), x.dtype)


def _zero_aligned(low: tf.Tensor, high: tf.Tensor, bits: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Return `grid.zero_aligned_range` of tensors."""
    levels = float(2**bits - 1)
    zero = tf.clip_by_value(tf.floor(0.5 - low * levels / (high - low)), 1.0, levels - 1.0)
    step = tf.maximum(-low / zero, high / (levels - zero))
    straddles = tf.logical_and(low < 0.0, high > 0.0)
    return (
        tf.where(straddles, -zero * step, low),
        tf.where(straddles, (levels - zero) * step, high),
    )


@register
class FixedRangeQuantizer(tfmot.quantization.keras.quantizers.Quantizer):
    r"""Linear k-bit quantizer on a fixed range, the paper's activation quantizer.

    .. math:: Q(x) = s \lfloor \mathrm{clip}(x, l, h)/s + 1/2 \rfloor, \quad s = (h-l)/(2^k-1)

    Gradient: 1 for ``low <= x <= high``, 0 outside (straight-through).

    Args:
        bits: k, 1..8. One bit needs ``low=0``: its levels are 0 and ``high``.
        low: lower end of the range, <= 0; nudged so that 0 is on the grid.
        high: upper end of the range, > 0.

    Raises:
        ValueError: ``bits`` is out of range, or the range does not contain 0.

    Source: Lin, Gan, Han, ICLR 2019, section 3.1; the range is ReLU6's.
    """

    def __init__(self, bits: int, low: float = 0.0, high: float = 6.0) -> None:
        self.bits = check_bits(bits, 1, 8, "activation bits")
        self.low, self.high = float(low), float(high)
        if not (np.isfinite(self.low) and np.isfinite(self.high)):
            raise ValueError(f"the range must be finite, got [{low}, {high}]")
        if self.bits == 1 and self.low != 0.0:
            raise ValueError(f"one bit needs a range that starts at 0, got [{low}, {high}]")
        nudged_grid(self.low, self.high, self.bits)

    def build(self, tensor_shape: Any, name: str, layer: tf_keras.layers.Layer) -> Variables:
        """Return no variables: the range is fixed."""
        return {}

    def __call__(
        self, inputs: tf.Tensor, training: bool, weights: Variables, **kwargs: Any
    ) -> tf.Tensor:
        """Return ``inputs`` rounded to the grid."""
        return _fake_quantize(inputs, self.low, self.high, self.bits)

    def grid(self, weights: Variables) -> Grid:
        """Return the int8 grid of the output."""
        return nudged_grid(self.low, self.high, self.bits)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {"bits": self.bits, "low": self.low, "high": self.high}


@register
class ObservedRangeQuantizer(tfmot.quantization.keras.quantizers.Quantizer):
    """Linear k-bit quantizer whose range is observed while training.

    The range is that of the first training batch, then follows the batches: a moving average of
    their extremes (decay 0.99), or the extremes of all batches seen, widened by up to one step so
    that 0 is on the grid (see `grid.zero_aligned_range`). It changes in training mode
    only. Until it has seen a batch, tensors pass unquantized. Under ``tf.distribute`` the extremes
    are those of the global batch, the same on every replica.

    Args:
        bits: 1..8.
        update: ``"moving_average"`` or ``"extremes"``.
        nonnegative: the tensor is >= 0; the range then starts at 0.

    Raises:
        ValueError: an argument is outside what is listed.
    """

    def __init__(
        self, bits: int, update: RangeUpdate = "moving_average", nonnegative: bool = False
    ) -> None:
        self.bits = check_bits(bits, 1, 8, "activation bits")
        if update not in get_args(RangeUpdate):
            raise ValueError(f"update must be one of {get_args(RangeUpdate)}, got {update!r}")
        if self.bits == 1 and not nonnegative:
            raise ValueError("one bit needs nonnegative=True: its levels are 0 and the maximum")
        self.update: RangeUpdate = update
        self.nonnegative = bool(nonnegative)

    def build(self, tensor_shape: Any, name: str, layer: tf_keras.layers.Layer) -> Variables:
        """Create the range's variables: ends, and whether they have seen a batch."""
        zero = tf_keras.initializers.Zeros()
        return {
            end: layer.add_weight(
                name=f"{name}_{end}",
                shape=(),
                dtype=tf.float32,
                initializer=zero,
                trainable=False,
                synchronization=tf.VariableSynchronization.ON_READ,
                aggregation=tf.VariableAggregation.MEAN,
                experimental_autocast=False,
            )
            for end in ("low", "high", "seen")
        }

    def _observe(self, inputs: tf.Tensor, weights: Variables) -> None:
        values = tf.cast(inputs, tf.float32)
        low = tf.zeros(()) if self.nonnegative else tf.minimum(tf.reduce_min(values), 0.0)
        high = tf.maximum(tf.reduce_max(values), 0.0)
        low, high = _global_extremes(low, high)
        first = weights["seen"] < 0.5
        if self.update == "extremes":
            beyond = tf.logical_or(first, (low < weights["low"]) | (high > weights["high"]))
            widest = tf.minimum(weights["low"], low), tf.maximum(weights["high"], high)
            aligned = _zero_aligned(*widest, self.bits)
            next_low = tf.where(beyond, aligned[0], weights["low"])
            next_high = tf.where(beyond, aligned[1], weights["high"])
            # Before the first batch both ends are 0, so the extremes are that batch's.
            low, high = next_low, next_high
        else:
            next_low = weights["low"] + (1.0 - RANGE_DECAY) * (low - weights["low"])
            next_high = weights["high"] + (1.0 - RANGE_DECAY) * (high - weights["high"])
        weights["low"].assign(tf.where(first, low, next_low))
        # An all-zero tensor has no range; the smallest one keeps the step a normal number.
        high = tf.where(first, high, next_high)
        weights["high"].assign(tf.maximum(high, SMALLEST_RANGE))
        weights["seen"].assign(1.0)

    def __call__(
        self, inputs: tf.Tensor, training: bool, weights: Variables, **kwargs: Any
    ) -> tf.Tensor:
        """Return ``inputs`` rounded to the grid; in training, observe them first."""

        def quantize() -> tf.Tensor:
            low, high = (tf.convert_to_tensor(weights[end]) for end in ("low", "high"))
            return _fake_quantize(inputs, low, high, self.bits)

        if training or _observing.get():
            self._observe(tf.stop_gradient(inputs), weights)
            return quantize()
        return tf.cond(weights["seen"] > 0.5, quantize, lambda: tf.identity(inputs))

    def grid(self, weights: Variables) -> Grid:
        """Return the int8 grid of the output.

        Raises:
            ValueError: no batch has been seen yet, or nothing but zeros.
        """
        if float(weights["seen"].numpy()) < 0.5:
            raise ValueError(
                "the range has not seen any data yet: train the model, or pass images through it "
                "with tfdq.calibrate(model, images)"
            )
        low, high = float(weights["low"].numpy()), float(weights["high"].numpy())
        if not high - low > 2 * SMALLEST_RANGE:
            raise ValueError(
                "the range has seen no data but zeros (black images, or a layer whose outputs are "
                "all 0), so it has no step: train the model, or pass real images through it with "
                "tfdq.calibrate(model, images)"
            )
        return nudged_grid(low, high, self.bits)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {"bits": self.bits, "update": self.update, "nonnegative": self.nonnegative}


def _global_extremes(low: tf.Tensor, high: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the extremes over all replicas (``tf.distribute`` reduces sums and means only)."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return low, high
    row = tf.one_hot(context.replica_id_in_sync_group, context.num_replicas_in_sync)
    table = context.all_reduce("sum", tf.stack([row * low, row * high]))
    return tf.reduce_min(table[0]), tf.reduce_max(table[1])


@register
class KernelQuantizer(tfmot.quantization.keras.quantizers.Quantizer):
    r"""Symmetric k-bit quantizer of a kernel, on the range of its present values.

    .. math:: Q(w) = s \lfloor w/s + 1/2 \rfloor, \quad s = \max|w| / (2^{k-1}-1)

    The integers are ``-(2^(k-1)-1) .. 2^(k-1)-1`` ("narrow range"), so 0 is on the grid and the
    kernel's sign can be flipped. Gradient: 1 everywhere (every weight is inside its range).

    Args:
        bits: k, 2..8. Two bits are the ternary {-s, 0, s}.
        per_channel: one scale for each output channel (the last axis; for a depthwise kernel the
            last two), else one for the tensor.
        depthwise: the kernel is ``(k_h, k_w, c_in, multiplier)``.

    Raises:
        ValueError: ``bits`` is out of range.
    """

    def __init__(self, bits: int, per_channel: bool = True, depthwise: bool = False) -> None:
        self.bits = check_bits(bits, 2, 8, "weight bits")
        self.per_channel = bool(per_channel)
        self.depthwise = bool(depthwise)

    def build(self, tensor_shape: Any, name: str, layer: tf_keras.layers.Layer) -> Variables:
        """Return no variables: the range is that of the kernel itself."""
        return {}

    def _as_columns(self, kernel: tf.Tensor) -> tf.Tensor:
        channels = kernel.shape[-1] * (kernel.shape[-2] if self.depthwise else 1)
        return tf.reshape(tf.cast(kernel, tf.float32), (-1, channels))

    def _ranges(self, columns: tf.Tensor) -> tf.Tensor:
        magnitude = tf.reduce_max(tf.abs(columns), axis=0 if self.per_channel else None)
        return tf.maximum(magnitude, SMALLEST_RANGE)

    def __call__(
        self, inputs: tf.Tensor, training: bool, weights: Variables, **kwargs: Any
    ) -> tf.Tensor:
        """Return the kernel rounded to its grid."""
        return self._round(tf.convert_to_tensor(inputs))

    @tf.custom_gradient
    def _round(self, kernel: tf.Tensor) -> tuple[tf.Tensor, Any]:
        """Round; pass the gradient, also at the ends, which the op's own rounds off."""
        columns = self._as_columns(kernel)
        ends = self._ranges(columns)
        fake_quantize = (
            tf.quantization.fake_quant_with_min_max_vars_per_channel
            if self.per_channel
            else tf.quantization.fake_quant_with_min_max_vars
        )
        quantized = fake_quantize(columns, -ends, ends, num_bits=self.bits, narrow_range=True)
        return tf.cast(tf.reshape(quantized, kernel.shape), kernel.dtype), tf.identity

    def integers(self, kernel: tf.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Return the integers and scales of a kernel's grid points.

        Args:
            kernel: the float kernel.

        Returns:
            int8 array of the kernel's shape, and the float32 scales, ``(channels,)`` or ``()``.
        """
        ends = self._ranges(self._as_columns(tf.convert_to_tensor(kernel))).numpy()
        scale = (ends - -ends) / np.float32(2**self.bits - 2)
        columns = self._as_columns(self(kernel, False, {})).numpy()
        integers = np.rint(columns / scale).astype(np.int8)
        return integers.reshape(kernel.shape), scale.astype(np.float32)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {
            "bits": self.bits,
            "per_channel": self.per_channel,
            "depthwise": self.depthwise,
        }
