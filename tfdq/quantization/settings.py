"""The settings of a quantization by tf_keras."""

from __future__ import annotations

from typing import Any

import tf_keras
from pydantic import SkipValidation, model_validator

from tfdq.grid import zero_aligned_range
from tfdq.mistakes import WrongTypeError
from tfdq.penalties.names import get_regularizer
from tfdq.penalties.regularizers import KernelRegularizer
from tfdq.quantization.layers import RELUS
from tfdq.quantization.quantizers import FixedRangeQuantizer, ObservedRangeQuantizer
from tfdq.settings.quantization import LINEAR_BITS, QuantizeSettings

SOFTMAX_RANGE = (0.0, 255 / 256)


class Settings(QuantizeSettings):
    """How a model is quantized; see ``tfdq.quantize_model`` for the meaning of each field."""

    regularizer: SkipValidation[str | tf_keras.regularizers.Regularizer] = "orthogonal"
    beta_schedule: SkipValidation[tf_keras.optimizers.schedules.LearningRateSchedule | None] = None

    @model_validator(mode="before")
    @classmethod
    def _of_tf_keras(cls, given: Any) -> Any:
        for name in ("activation_range", "kernel_range"):
            if given.get(name) == "learned":
                raise ValueError(
                    f"{name}='learned' is for Keras 3 models only, got a tf_keras model; quantize "
                    "tfdq.to_keras3(model)"
                )
        return given

    @model_validator(mode="after")
    def _checked(self) -> Settings:
        penalty = self._prototype()
        if self.beta_schedule is None:
            return self
        if not isinstance(self.beta_schedule, tf_keras.optimizers.schedules.LearningRateSchedule):
            raise WrongTypeError(
                "beta_schedule must be a schedule of tf_keras.optimizers.schedules, such as "
                f"PolynomialDecay(0.0, 1000, 2e-3) for a warm-up, got {self.beta_schedule!r}; "
                "for a function of the epoch give fit the callback "
                "tfdq.penalties.PenaltySchedule"
            )
        if not isinstance(penalty, KernelRegularizer):
            raise ValueError(
                "beta_schedule sets the weight of a penalty of tfdq.penalties; the regularizer "
                f"{type(penalty).__name__} has a weight of its own"
            )
        return self

    def activation_quantizer(self, bits: int) -> FixedRangeQuantizer | ObservedRangeQuantizer:
        """Return the quantizer that follows a ReLU."""
        if self.activation_range == "relu6":
            return FixedRangeQuantizer(bits)
        return ObservedRangeQuantizer(bits, nonnegative=True)

    def fused_activation(self, activation: str) -> str:
        """Return what a layer fuses of ``linear``, ``relu``, ``relu6`` or ``softmax``.

        A ReLU becomes ReLU6 where the range is ReLU6's; softmax is a layer of its own.
        """
        if activation not in RELUS:
            return "linear"
        return "relu6" if self.activation_range == "relu6" else activation

    def input_quantizer(self) -> FixedRangeQuantizer | ObservedRangeQuantizer:
        """Return the quantizer of the model's input, 8 bits."""
        if self.input_range is None:
            return ObservedRangeQuantizer(LINEAR_BITS, update="extremes")
        return FixedRangeQuantizer(LINEAR_BITS, *zero_aligned_range(*self.input_range, LINEAR_BITS))

    def penalty(
        self, depthwise: bool, strides: tuple[int, int] = (1, 1)
    ) -> tf_keras.regularizers.Regularizer | None:
        """Return a fresh regularizer for one kernel, or None.

        Args:
            depthwise: the kernel is ``(k_h, k_w, c_in, multiplier)``.
            strides: of the convolution, for the penalties that know it.
        """
        unweighted = self.lipschitz_beta == 0 and self.beta_schedule is None
        if isinstance(self.regularizer, str) and unweighted:
            return None
        prototype = self._prototype()
        config: dict[str, Any] = prototype.get_config()
        for name, value in (("depthwise", depthwise), ("strides", strides)):
            if name in config:
                config[name] = value
        return type(prototype).from_config(config)

    @property
    def penalized(self) -> str:
        """The kernel that the penalty acts on; without one the trained ``"kernel"``."""
        return str(getattr(self.penalty(depthwise=False), "on", "kernel"))

    def _prototype(self) -> tf_keras.regularizers.Regularizer:
        return get_regularizer(self.regularizer, self.lipschitz_beta, self.on, self.target)
