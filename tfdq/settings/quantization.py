"""The settings of a quantization: what `quantize_model`, recipes and the command line take."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Collection, Mapping
from numbers import Integral, Real
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError

from tfdq.lagging_statistics import QUICK_MOMENTUM
from tfdq.penalties.singular_values import SingularValue
from tfdq.settings.section import Section, problems

LINEAR_BITS = 8
"""Bits of what is not behind a ReLU."""


def whole(low: int, high: int) -> BeforeValidator:
    """Return the check for a whole number in ``low..high``."""

    def check(value: Any) -> int:
        if not _is_bits(value, low, high):
            raise ValueError(f"must be a whole number from {low} to {high}, got {value!r}")
        return int(value)

    return BeforeValidator(check)


def _is_finite(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _weight(value: Any) -> float:
    if not _is_finite(value) or value < 0:
        raise ValueError(f"must be a finite number >= 0, got {value!r}; 0 switches it off")
    return float(value)


def _target(value: Any) -> SingularValue:
    if value == "1/k":
        return "1/k"
    if not _is_finite(value) or value <= 0:
        raise ValueError(f"must be a finite number > 0 or '1/k', got {value!r}")
    return float(value)


def _momentum(value: Any) -> float:
    if not _is_finite(value) or not 0 <= value < 1:
        raise ValueError(
            "must be a number in [0, 1), such as 0.9; by default it is the model's own, at most "
            f"{QUICK_MOMENTUM} behind a penalty, got {value!r}"
        )
    return float(value)


def _range(value: Any) -> tuple[float, float]:
    pair = tuple(value) if isinstance(value, (list, tuple)) else ()
    if len(pair) != 2 or not all(map(_is_finite, pair)):
        raise ValueError(f"must be two finite numbers, such as (0, 1), got {value!r}")
    if not pair[0] <= 0 <= pair[1] or pair[0] == pair[1]:
        raise ValueError(f"must contain 0 and not be empty, got {value!r}")
    return pair


def _layer_bits(value: Any) -> int | tuple[int, int]:
    weights, activations = value if isinstance(value, (list, tuple)) else (value, value)
    if not (_is_bits(weights, 2) and _is_bits(activations, 1)):
        raise ValueError(
            "must be bits, 2 to 8, or (weight bits, 2 to 8, activation bits, 1 to 8), got "
            f"{value!r}"
        )
    return (int(weights), int(activations)) if isinstance(value, (list, tuple)) else int(value)


def _is_bits(value: Any, low: int, high: int = 8) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and low <= int(value) <= high


def _names(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


# Each type has the range and the meaning of one field; who has the field gives it its default.
Placement = Literal["kernel", "folded", "deployed"]
PenaltyName = Literal["orthogonal", "srip", "spectral", "conv_orthogonal"]
ActivationRange = Literal["relu6", "moving_average", "learned"]
KernelRange = Literal["max", "learned"]
LayerBits = int | tuple[int, int]

PenaltyWeightField = Annotated[
    float, BeforeValidator(_weight), Field(description="Weight of the penalty; 0: none (VQ).")
]
PenaltyNameField = Annotated[PenaltyName, Field(description="Which Lipschitz penalty.")]
PlacementField = Annotated[
    Placement,
    Field(description="Kernel it acts on: trained, BatchNorm folded in, or quantized as well."),
]
TargetField = Annotated[
    Annotated[SingularValue, BeforeValidator(_target)] | None,
    Field(description="Singular value it aims at: 1/k or a number."),
]
WeightBitsField = Annotated[int, whole(2, 8), Field(description="Bits of the kernels, 2..8.")]
ActivationBitsField = Annotated[
    int, whole(1, 8), Field(description="Bits behind a ReLU, 1..8; what is not has 8.")
]
FirstLastBitsField = Annotated[
    Annotated[int, whole(2, 8)] | None,
    Field(description="Bits of first and last layers, 2..8; by default those of the others."),
]
LayerBitsField = Annotated[
    Mapping[str, Annotated[LayerBits, BeforeValidator(_layer_bits)]],
    Field(description="Bits of a single layer: 4, or [8, 4] for weights and activations."),
]
ActivationRangeField = Annotated[
    Literal["relu6", "moving_average"],
    Field(description="Range behind a ReLU: as observed in training, or the paper's [0, 6]."),
]
"""Of what trains networks of tf_keras, which learn no steps."""
LearnableRangeField = Annotated[
    ActivationRange,
    Field(description="Range behind a ReLU: as observed, the paper's [0, 6], or a learned step."),
]
KernelRangeField = Annotated[
    KernelRange, Field(description="Step of a kernel: from its largest magnitude, or learned.")
]
InputRangeField = Annotated[
    Annotated[tuple[float, float], BeforeValidator(_range)] | None,
    Field(description="Lowest and highest input value; by default the extremes in training."),
]
MomentumField = Annotated[
    Annotated[float, BeforeValidator(_momentum)] | None,
    Field(
        description="Of BatchNorm's moving statistics; by default the model's, with a penalty on "
        f"a folded kernel at most {QUICK_MOMENTUM}, so that they keep up."
    ),
]
SkipField = Annotated[
    frozenset[str],
    BeforeValidator(_names),
    PlainSerializer(sorted, return_type=list[str]),
    Field(description="Layer that stays in float; such a network trains but does not export."),
]


class QuantizeSettings(Section):
    """How a model is quantized: the arguments of ``tfdq.quantize_model``, which explains them.

    Each core adds what is of its Keras: ``regularizer`` and ``beta_schedule``.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    lipschitz_beta: PenaltyWeightField = 2e-3
    on: PlacementField = "deployed"
    target: TargetField = None
    weight_bits: WeightBitsField = 8
    activation_bits: ActivationBitsField = 8
    first_last_bits: FirstLastBitsField = None
    layer_bits: LayerBitsField = Field(default_factory=dict)
    activation_range: LearnableRangeField = "moving_average"
    kernel_range: KernelRangeField = "max"
    input_range: InputRangeField = None
    batch_norm_momentum: MomentumField = None
    skip: SkipField = frozenset()

    def __init__(self, **given: Any) -> None:
        try:
            super().__init__(**given)
        except ValidationError as error:
            raise ValueError(problems(type(self), error)) from error

    @property
    @abstractmethod
    def penalized(self) -> str:
        """The kernel that the penalty acts on; without one the trained ``"kernel"``."""

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

    def norm_momentum(self, own: float) -> float:
        """Return the momentum of the moving statistics of a BatchNorm that is quantized.

        A penalty on the folded or deployed kernel moves all layers, frozen BatchNorms excepted;
        statistics that are to keep up with it need a quick momentum.

        Args:
            own: of the float model's layer.
        """
        if self.batch_norm_momentum is not None:
            return self.batch_norm_momentum
        return own if self.penalized == "kernel" else min(own, QUICK_MOMENTUM)
