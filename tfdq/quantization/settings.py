"""The settings of a quantization, checked: bits, ranges, penalty."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import tf_keras

from tfdq.grid import zero_aligned_range
from tfdq.lagging_statistics import QUICK_MOMENTUM
from tfdq.mistakes import WrongTypeError
from tfdq.penalties.names import get_regularizer
from tfdq.penalties.regularizers import (
    KernelRegularizer,
    Placement,
    check_beta,
    check_placement,
)
from tfdq.penalties.singular_values import SingularValue, check_target
from tfdq.quantization.layers import RELUS
from tfdq.quantization.quantizers import (
    FixedRangeQuantizer,
    ObservedRangeQuantizer,
    check_bits,
)

ActivationRange = Literal["relu6", "moving_average"]
LayerBits = int | tuple[int, int]
LINEAR_BITS = 8
SOFTMAX_RANGE = (0.0, 255 / 256)


def check_momentum(momentum: float | None) -> None:
    """Check the momentum of moving statistics; None leaves the choice to the settings.

    Raises:
        ValueError: it is not a number in [0, 1).
    """
    if momentum is None:
        return
    number = isinstance(momentum, (int, float)) and not isinstance(momentum, bool)
    if not number or not 0 <= momentum < 1:
        raise ValueError(
            f"batch_norm_momentum must be a number in [0, 1), such as 0.9, or None for the "
            f"model's own, at most {QUICK_MOMENTUM} behind a penalty, got {momentum!r}"
        )


@dataclass(frozen=True)
class Settings:
    """How a model is quantized; see ``tfdq.quantize_model`` for the meaning of each field."""

    lipschitz_beta: float = 0.0
    on: Placement = "deployed"
    target: SingularValue | None = None
    regularizer: str | tf_keras.regularizers.Regularizer = "orthogonal"
    beta_schedule: tf_keras.optimizers.schedules.LearningRateSchedule | None = None
    weight_bits: int = 8
    activation_bits: int = 8
    first_last_bits: int | None = None
    layer_bits: Mapping[str, LayerBits] = field(default_factory=dict)
    activation_range: ActivationRange = "moving_average"
    input_range: tuple[float, float] | None = None
    batch_norm_momentum: float | None = None
    skip: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        check_beta(self.lipschitz_beta)
        check_placement(self.on)
        if self.target is not None:
            check_target(self.target)
        check_bits(self.weight_bits, 2, 8, "weight_bits")
        check_bits(self.activation_bits, 1, 8, "activation_bits")
        if self.first_last_bits is not None:
            check_bits(self.first_last_bits, 2, 8, "first_last_bits")
        if not isinstance(self.layer_bits, Mapping):
            raise ValueError(
                "layer_bits maps layer names to bits or (weight bits, activation bits), "
                f"got {self.layer_bits!r}"
            )
        for name, bits in self.layer_bits.items():
            pair = bits if isinstance(bits, tuple) else (bits, bits)
            if len(pair) != 2:
                raise ValueError(f"layer_bits[{name!r}] must be an int or a pair, got {bits!r}")
            check_bits(pair[0], 2, 8, f"layer_bits[{name!r}], weights,")
            check_bits(pair[1], 1, 8, f"layer_bits[{name!r}], activations,")
        if self.activation_range not in ("relu6", "moving_average"):
            raise ValueError(
                "activation_range must be 'relu6' or 'moving_average', "
                f"got {self.activation_range!r}"
            )
        if self.input_range is not None:
            low, high = self.input_range
            FixedRangeQuantizer(8, low, high)
        check_momentum(self.batch_norm_momentum)
        penalty = self._prototype()
        if self.beta_schedule is None:
            return
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

    def check_names(self, known: Collection[str]) -> None:
        """Check that every layer named in the settings exists.

        Raises:
            ValueError: a name is unknown; the known ones are listed.
        """
        unknown = sorted((set(self.layer_bits) | set(self.skip)) - set(known))
        if unknown:
            raise ValueError(f"no layer is called {unknown}; the model has {sorted(known)}")

    def bits_of(self, name: str, first: bool, last: bool) -> tuple[int, int]:
        """Return the weight and activation bits of a layer.

        Args:
            name: the layer's name.
            first: it has a kernel and takes the model's input.
            last: it has a kernel and no other kernel follows.
        """
        if name in self.layer_bits:
            bits = self.layer_bits[name]
            return bits if isinstance(bits, tuple) else (bits, bits)
        if self.first_last_bits is not None and (first or last):
            return self.first_last_bits, self.first_last_bits
        return self.weight_bits, self.activation_bits

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

    def norm_momentum(self, own: float) -> float:
        """Return the momentum of the moving statistics of a BatchNorm that is quantized.

        A penalty on the folded or deployed kernel moves all layers, frozen BatchNorms excepted;
        statistics that are to keep up with it need a quick momentum.

        Args:
            own: of the float model's layer.
        """
        if self.batch_norm_momentum is not None:
            return self.batch_norm_momentum
        penalty = self.penalty(depthwise=False, strides=(1, 1))
        follows = penalty is not None and getattr(penalty, "on", "kernel") != "kernel"
        return min(own, QUICK_MOMENTUM) if follows else own

    def _prototype(self) -> tf_keras.regularizers.Regularizer:
        return get_regularizer(self.regularizer, self.lipschitz_beta, self.on, self.target)
