"""The settings of a quantization by Keras 3."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from pydantic import SkipValidation, model_validator

from tfdq.grid import zero_aligned_range
from tfdq.keras3.penalty import NAMES
from tfdq.keras3.ranges import RangeSettings
from tfdq.mistakes import WrongTypeError
from tfdq.penalties.singular_values import default_target
from tfdq.settings.quantization import LINEAR_BITS, QuantizeSettings

BetaSchedule = Callable[[Any], Any]


class Settings(QuantizeSettings):
    """How a model is quantized; see `quantize_model` for the meaning of each field."""

    regularizer: SkipValidation[str | keras.regularizers.Regularizer] = "orthogonal"
    beta_schedule: SkipValidation[BetaSchedule | None] = None

    def input(self) -> RangeSettings:
        """Return the settings of the input's quantizer, 8 bits."""
        if self.input_range is None:
            return RangeSettings(LINEAR_BITS, "extremes")
        low, high = map(float, self.input_range)
        return RangeSettings(LINEAR_BITS, fixed=zero_aligned_range(low, high, LINEAR_BITS))

    def output(self, activation: str, bits: int) -> RangeSettings:
        """Return the settings of a layer's output quantizer.

        Args:
            activation: what the layer ends with; without a ReLU it has 8 bits.
            bits: of what is behind a ReLU.
        """
        if activation == "linear":
            return RangeSettings(LINEAR_BITS)
        if self.activation_range == "relu6":
            return RangeSettings(bits, nonnegative=True, fixed=(0.0, 6.0))
        return RangeSettings(bits, self.activation_range, nonnegative=True)

    def activation(self, activation: str) -> str:
        """Return what a layer ends with: a ReLU becomes ReLU6 where the range is ReLU6's."""
        relu6 = self.activation_range == "relu6" and activation == "relu"
        return "relu6" if relu6 else activation

    def penalty(self, depthwise: bool, strides: tuple[int, int]) -> dict[str, Any] | None:
        """Return the settings of the penalty of one kernel (`KernelPenalty`), or None.

        Args:
            depthwise: the kernel is ``(height, width, in, multiplier)``.
            strides: of the convolution.
        """
        if not isinstance(self.regularizer, str):
            config = dict(self.regularizer.get_config())
            told = {"depthwise": depthwise, "strides": tuple(strides)}
            config.update({name: value for name, value in told.items() if name in config})
            own = type(self.regularizer).from_config(config)
            return {
                "on": getattr(own, "on", "kernel"),
                "regularizer": keras.regularizers.serialize(own),
            }
        if self.lipschitz_beta == 0 and self.beta_schedule is None:
            return None
        target = default_target(self.regularizer) if self.target is None else self.target
        found = {"name": self.regularizer, "on": self.on, "target": target}
        if self.beta_schedule is None:
            return {**found, "beta": float(self.lipschitz_beta)}
        return {**found, "schedule": keras.saving.serialize_keras_object(self.beta_schedule)}

    @property
    def penalized(self) -> str:
        """The kernel that the penalty acts on; without one the trained ``"kernel"``."""
        found = self.penalty(False, (1, 1))
        return "kernel" if found is None else str(found["on"])

    @model_validator(mode="after")
    def _checked(self) -> Settings:
        named = isinstance(self.regularizer, str)
        known = named and self.regularizer in NAMES
        if not known and not isinstance(self.regularizer, keras.regularizers.Regularizer):
            kind = f"{type(self.regularizer).__module__}.{type(self.regularizer).__name__}"
            raise ValueError(
                f"regularizer must be one of {', '.join(NAMES)} or an object of a registered "
                "subclass of keras.regularizers.Regularizer, got "
                f"{self.regularizer if named else kind!r}"
            )
        if self.beta_schedule is None:
            return self
        if not callable(self.beta_schedule):
            raise WrongTypeError(
                "beta_schedule must be a schedule of keras.optimizers.schedules, such as "
                "PolynomialDecay(0.0, 1000, 2e-3) for a warm-up, or a registered function of the "
                f"step, got {self.beta_schedule!r}"
            )
        if not named:
            raise ValueError(
                "beta_schedule sets the weight of a penalty that is given by name; the "
                f"regularizer {type(self.regularizer).__name__} has a weight of its own"
            )
        return self
