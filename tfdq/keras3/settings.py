"""The settings of a quantization, checked: bits, ranges, penalty."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import keras

from tfdq.grid import nudged_grid, zero_aligned_range
from tfdq.keras3.penalty import NAMES
from tfdq.keras3.ranges import RangeSettings
from tfdq.lagging_statistics import QUICK_MOMENTUM
from tfdq.mistakes import WrongTypeError
from tfdq.penalties.singular_values import SingularValue, check_target, default_target

Placement = Literal["kernel", "folded", "deployed"]
ActivationRange = Literal["relu6", "moving_average"]
LayerBits = int | tuple[int, int]
BetaSchedule = Callable[[Any], Any]
LINEAR_BITS = 8


@dataclass(frozen=True)
class Settings:
    """How a model is quantized; see `quantize_model` for the meaning of each field."""

    lipschitz_beta: float = 0.0
    on: Placement = "deployed"
    target: SingularValue | None = None
    regularizer: str | keras.regularizers.Regularizer = "orthogonal"
    beta_schedule: BetaSchedule | None = None
    weight_bits: int = 8
    activation_bits: int = 8
    first_last_bits: int | None = None
    layer_bits: Mapping[str, LayerBits] = field(default_factory=dict)
    activation_range: ActivationRange = "moving_average"
    input_range: tuple[float, float] | None = None
    batch_norm_momentum: float | None = None
    skip: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        _check_number("lipschitz_beta", self.lipschitz_beta, 0.0, math.inf, "0 switches it off")
        _check_choice("on", self.on, get_args(Placement))
        if self.target is not None:
            check_target(self.target)
        self._check_regularizer()
        _check_bits("weight_bits", self.weight_bits, 2)
        _check_bits("activation_bits", self.activation_bits, 1)
        if self.first_last_bits is not None:
            _check_bits("first_last_bits", self.first_last_bits, 2)
        if not isinstance(self.layer_bits, Mapping):
            raise ValueError(
                "layer_bits maps layer names to bits or (weight bits, activation bits), "
                f"got {self.layer_bits!r}"
            )
        for name, bits in self.layer_bits.items():
            pair = bits if isinstance(bits, tuple) else (bits, bits)
            if len(pair) != 2:
                raise ValueError(f"layer_bits[{name!r}] must be an int or a pair, got {bits!r}")
            _check_bits(f"layer_bits[{name!r}], weights,", pair[0], 2)
            _check_bits(f"layer_bits[{name!r}], activations,", pair[1], 1)
        _check_choice("activation_range", self.activation_range, get_args(ActivationRange))
        if self.input_range is not None:
            if len(self.input_range) != 2 or not all(map(math.isfinite, self.input_range)):
                raise ValueError(
                    f"input_range must be two finite numbers, such as (0, 1), got "
                    f"{self.input_range!r}"
                )
            nudged_grid(*self.input_range, LINEAR_BITS)
        if self.batch_norm_momentum is not None:
            momentum = self.batch_norm_momentum
            _check_number("batch_norm_momentum", momentum, 0.0, 1.0, "None keeps the model's own")

    def check_names(self, known: Collection[str]) -> None:
        """Check that every layer named in the settings exists.

        Raises:
            ValueError: a name is unknown; the known ones are listed.
        """
        unknown = sorted((set(self.layer_bits) | self.skip) - set(known))
        if unknown:
            raise ValueError(f"no layer is called {unknown}; the model has {sorted(known)}")

    def bits_of(self, name: str, end: bool) -> tuple[int, int]:
        """Return the weight and activation bits of a layer.

        Args:
            name: the layer's name.
            end: it has a kernel, and takes the model's input or is the last with one.
        """
        if name in self.layer_bits:
            bits = self.layer_bits[name]
            return bits if isinstance(bits, tuple) else (bits, bits)
        if self.first_last_bits is not None and end:
            return self.first_last_bits, self.first_last_bits
        return self.weight_bits, self.activation_bits

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
        return RangeSettings(bits, nonnegative=True)

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

    def norm_momentum(self, own: float) -> float:
        """Return the momentum of the moving statistics of a BatchNorm that is quantized.

        A penalty on the folded or deployed kernel moves all layers, frozen BatchNorms excepted;
        statistics that are to keep up with it need a quick momentum.

        Args:
            own: of the float model's layer.
        """
        if self.batch_norm_momentum is not None:
            return float(self.batch_norm_momentum)
        return own if self.penalized == "kernel" else min(own, QUICK_MOMENTUM)

    def _check_regularizer(self) -> None:
        """Check penalty and schedule.

        Raises:
            TypeError: the schedule cannot be called.
            ValueError: the penalty is not known; or it and the schedule both set a weight.
        """
        named = isinstance(self.regularizer, str)
        if named:
            _check_choice("regularizer", self.regularizer, NAMES)
        elif not isinstance(self.regularizer, keras.regularizers.Regularizer):
            kind = f"{type(self.regularizer).__module__}.{type(self.regularizer).__name__}"
            raise ValueError(
                f"regularizer must be one of {', '.join(NAMES)} or an object of a registered "
                f"subclass of keras.regularizers.Regularizer, got {kind}"
            )
        if self.beta_schedule is None:
            return
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


def _check_number(name: str, value: Any, least: float, below: float, remedy: str) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not least <= value < below:
        limits = f"in [{least:g}, {below:g})" if math.isfinite(below) else f">= {least:g}"
        raise ValueError(f"{name} must be a finite number {limits}, got {value!r}; {remedy}")


def _check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def _check_bits(name: str, bits: Any, least: int) -> None:
    if isinstance(bits, bool) or not isinstance(bits, int) or not least <= bits <= 8:
        raise ValueError(f"{name} must be a whole number from {least} to 8, got {bits!r}")
