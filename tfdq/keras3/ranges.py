"""The range of a quantizer, fixed or observed in training, and the step that it gives."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import keras
import numpy as np
from keras import ops

from tfdq.grid import Grid, nudged_grid

RangeUpdate = Literal["moving_average", "extremes", "learned"]
RANGE_DECAY = 0.99
SMALLEST_RANGE = 1e-6


class Steps(NamedTuple):
    """A grid in a training step.

    Attributes:
        step: float32 scalar, the distance of two integers.
        low: float32 scalar, the lowest integer, counted from the one that stands for 0.
        high: float32 scalar, the highest.
    """

    step: Any
    low: Any
    high: Any


@dataclass(frozen=True)
class RangeSettings:
    """How the range of a quantizer is found.

    Attributes:
        bits: 1 to 8; there are ``2**bits`` integers.
        update: how the range follows the training batches: ``"moving_average"`` of their extremes
            (decay 0.99), or the ``"extremes"`` of all batches; or its step is ``"learned"``, of a
            tensor that is >= 0 (`tfdq.keras3.learned_steps`). All start from the first batch.
        nonnegative: the tensor is >= 0, and so the range starts at 0.
        fixed: the lowest and the highest value of a range that does not follow, or None.
    """

    bits: int
    update: RangeUpdate = "moving_average"
    nonnegative: bool = False
    fixed: tuple[float, float] | None = None

    def config(self) -> dict[str, Any]:
        """Return the settings as plain values."""
        return asdict(self)

    @classmethod
    def of(cls, config: RangeSettings | dict[str, Any]) -> RangeSettings:
        """Return settings from their `config`, or as they are."""
        if isinstance(config, cls):
            return config
        assert isinstance(config, dict)
        fixed = config.get("fixed")
        return cls(**{**config, "fixed": None if fixed is None else (fixed[0], fixed[1])})


class OutputRange:
    """The range of a layer's output, in variables of the layer.

    Args:
        layer: the layer, in its ``build``.
        settings: how the range is found.
    """

    def __init__(self, layer: keras.layers.Layer, settings: RangeSettings) -> None:
        self.settings = settings
        self._levels = float(2**settings.bits - 1)
        self._layer_name = layer.name
        if settings.fixed is None:
            self.low, self.high, self.seen = (
                layer.add_weight(
                    name=f"range_{name}",
                    shape=(),
                    initializer="zeros",
                    dtype="float32",
                    trainable=False,
                    autocast=False,
                )
                for name in ("low", "high", "seen")
            )

    def take(self, values: Any, follow: bool) -> Steps:
        """Take a batch of values into the range, and return the grid.

        Args:
            values: float32.
            follow: False: the range stays, unless it has seen no batch yet.
        """
        seen = ops.stop_gradient(values)
        return self.observe(ops.min(seen), ops.max(seen), follow)

    def observe(self, low: Any, high: Any, follow: bool) -> Steps:
        """Take the extremes of a batch into the range, and return the grid.

        Args:
            low: lowest value of the batch, float32 scalar.
            high: highest value.
            follow: False: the range stays, unless it has seen no batch yet.
        """
        if self.settings.fixed is not None:
            return self.present()
        low = ops.zeros(()) if self.settings.nonnegative else ops.minimum(low, 0.0)
        low, high = (ops.stop_gradient(end) for end in (low, ops.maximum(high, 0.0)))
        first = self.seen < 0.5
        present = (ops.convert_to_tensor(self.low), ops.convert_to_tensor(self.high))
        if self.settings.update == "extremes":
            wider = self._widened(ops.minimum(present[0], low), ops.maximum(present[1], high))
            beyond = ops.logical_or(first, ops.logical_or(low < present[0], high > present[1]))
            low, high = (ops.where(beyond, a, b) for a, b in zip(wider, present, strict=True))
        elif follow:
            following = (
                present[0] + (1.0 - RANGE_DECAY) * (low - present[0]),
                present[1] + (1.0 - RANGE_DECAY) * (high - present[1]),
            )
            low, high = (
                ops.where(first, a, b) for a, b in zip((low, high), following, strict=True)
            )
        if not follow:
            low, high = (ops.where(first, a, b) for a, b in zip((low, high), present, strict=True))
        # A tensor of zeros has no range; the smallest one keeps the step a normal number.
        high = ops.maximum(high, SMALLEST_RANGE)
        self.low.assign(low)
        self.high.assign(high)
        self.seen.assign(ops.ones(()))
        return self._steps(low, high)

    def present(self) -> Steps:
        """Return the grid of the range as it is."""
        if self.settings.fixed is not None:
            return self._steps(*(ops.convert_to_tensor(e, "float32") for e in self.settings.fixed))
        return self._steps(ops.convert_to_tensor(self.low), ops.convert_to_tensor(self.high))

    def grid(self) -> Grid:
        """Return the int8 grid that the output is deployed on.

        Raises:
            ValueError: the range has seen no data, nothing but zeros, or NaN or infinite values.
        """
        if self.settings.fixed is not None:
            return nudged_grid(*self.settings.fixed, self.settings.bits)
        if not self.has_seen:
            raise ValueError(
                f"the range of layer {self._layer_name!r} has not seen any data yet: train the "
                "model, or pass images through it with tfdq.keras3.calibrate(model, images)"
            )
        low, high = self._ends()
        if not np.isfinite([low, high]).all():
            raise ValueError(
                f"the range of layer {self._layer_name!r} has seen NaN or infinite values: look "
                "for them in the images and the weights, then quantize the float model again"
            )
        if not self.has_step:
            raise ValueError(
                f"the range of layer {self._layer_name!r} has seen no data but zeros (black "
                "images, or a layer whose outputs are all 0), so it has no step: train the model, "
                "or pass real images through it with tfdq.keras3.calibrate(model, images)"
            )
        return nudged_grid(low, high, self.settings.bits)

    @property
    def has_step(self) -> bool:
        """Whether the range is fixed, or has seen other values than zeros."""
        if self.settings.fixed is not None:
            return True
        low, high = self._ends()
        return self.has_seen and high - low > 2 * SMALLEST_RANGE

    def _ends(self) -> tuple[float, float]:
        low, high = (
            float(ops.convert_to_numpy(end).astype(np.float32)) for end in (self.low, self.high)
        )
        return low, high

    @property
    def has_seen(self) -> bool:
        """Whether the range is fixed or has seen a batch."""
        return self.settings.fixed is not None or float(ops.convert_to_numpy(self.seen)) > 0.5

    def _steps(self, low: Any, high: Any) -> Steps:
        step = (high - low) / self._levels
        zero = ops.clip(ops.floor(0.5 - low / step), 0.0, self._levels)
        return Steps(step, 0.0 - zero, self._levels - zero)

    def _widened(self, low: Any, high: Any) -> tuple[Any, Any]:
        """Return the least range around one that has 0 on its grid (`zero_aligned_range`)."""
        high = ops.maximum(high, SMALLEST_RANGE)
        zero = ops.floor(0.5 - low * self._levels / (high - low))
        zero = ops.clip(zero, 1.0, self._levels - 1.0)
        step = ops.maximum(-low / zero, high / (self._levels - zero))
        straddles = ops.logical_and(low < 0.0, high > 0.0)
        return (
            ops.where(straddles, -zero * step, low),
            ops.where(straddles, (self._levels - zero) * step, high),
        )
