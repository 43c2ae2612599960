"""What there is to know of an operator, and of the kernel sets that compute it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from tflite_export.ir.graph import DTYPES, Operator, Tensor, activation_range
from tflite_export.ir.requantization import (
    Rescale,
    scale_away,
    scale_in_eights,
    scale_once,
    scale_upward,
    scale_wide,
)
from tflite_export.ir.schema import OperatorSchema

Shape = tuple[int, ...]
Operands = Sequence["Tensor | None"]
Box = tuple[np.ndarray, np.ndarray]
"""The smallest and the largest values of a tensor, elementwise."""

FLOAT32_ERROR = 512 * 5 * 2.0**-24
"""Steps that five float32 roundings can be off; an output beyond 512 steps is clamped anyway."""

FIXED_POINT_ERROR = 0.25 + 512 * 2.0**-28
"""The same for fixed-point kernels, which round twice, the first time in halves of a step or finer;
the factor of a mean has 29 bits."""

WIDE_ERROR = 2.0**15 * 2.0**-15 + 2.0**-10
"""Steps of int16 that a multiplier of 15 bits can be off at the ends of the range."""

ROUND_UP = 1 + 1e-12
"""Factor that makes a constant computed in float64 an upper bound."""


@dataclass(frozen=True)
class KernelSet:
    """A family of kernels, by how each rescales its accumulator.

    Attributes:
        convolution: rounding of ``CONV_2D``.
        depthwise: of ``DEPTHWISE_CONV_2D``.
        dense: of ``FULLY_CONNECTED``.
        wide_dense: of ``FULLY_CONNECTED`` beside int16 activations.
        sixteens: ``ADD`` and ``MEAN`` take sixteen integers at a time, and round these otherwise.
        divides: ``QUANTIZE`` divides floats by the scale; else it multiplies by its inverse.
        xnnpack: XNNPACK runs first and leaves to the above only what it does not take.
    """

    convolution: Rescale
    depthwise: Rescale
    dense: Rescale
    wide_dense: Rescale = scale_once
    sixteens: bool = False
    divides: bool = False
    xnnpack: bool = False


KERNEL_SETS: dict[str, KernelSet] = {
    "xnnpack": KernelSet(scale_upward, scale_in_eights, scale_upward, sixteens=True, xnnpack=True),
    "builtin": KernelSet(scale_upward, scale_in_eights, scale_upward, sixteens=True),
    "reference": KernelSet(scale_away, scale_away, scale_once, divides=True),
    "builtin-2.14": KernelSet(scale_upward, scale_away, scale_upward, scale_wide),
    "reference-2.14": KernelSet(scale_away, scale_away, scale_away, scale_wide, divides=True),
}
"""The kernel sets whose arithmetic is known.

``xnnpack`` is what LiteRT runs by default, ``builtin`` its own kernels without XNNPACK,
``reference`` the plain C++ ones; ``-2.14`` are those of tflite-runtime 2.14, which uses no XNNPACK
for int8 by itself. TensorFlow Lite Micro computes as ``reference-2.14``. The vectors are those of
x86-64 with AVX2.
"""


@dataclass(frozen=True)
class Step:
    """An operator about to run.

    Attributes:
        operator: the operator.
        inputs: the operands that are present.
        output: the result.
        kernels: the kernel set to imitate.
        xnnpack: whether XNNPACK computes it in this kernel set.
        place: which of the operator's results ``output`` is.
    """

    operator: Operator
    inputs: list[Tensor]
    output: Tensor
    kernels: KernelSet
    xnnpack: bool
    place: int = 0

    def finish(self, scaled: np.ndarray) -> np.ndarray:
        """Add the zero point, clamp to the type and the fused activation."""
        activation = getattr(self.operator.options, "activation", "NONE")
        low, high = activation_range(activation, self.output)
        return np.clip(scaled + self.output.zero_point, low, high)

    def typed(self, values: np.ndarray) -> np.ndarray:
        """Values in the type of the output."""
        return values.astype(DTYPES[self.output.dtype])


class Keeps(Enum):
    """Which integers of its operands a result may have."""

    NOTHING = "computes integers of its own"
    INTEGERS = "some of the operands' integers"
    INTEGERS_AND_ZERO = "some of the operands' integers, and the zero point"


@dataclass(frozen=True)
class LinearPart:
    """The linear map that an operator is in real units, a convolution without its bias.

    Attributes:
        kernel: float64 ``(height, width, in / groups, out)``, the weights times their scales.
        shape: ``(height, width, in)`` of one input; a dense layer's is ``(1, 1, in)``.
        strides: of the height and of the width.
        padding: ``"same"`` or ``"valid"``.
        dilation: of the height and of the width.
        groups: number of groups.
    """

    kernel: np.ndarray
    shape: tuple[int, int, int]
    strides: tuple[int, int]
    padding: str
    dilation: tuple[int, int]
    groups: int


@dataclass(frozen=True)
class OperatorSpec:
    """Everything that this package knows of an operator.

    No field has a default: whoever adds an operator answers each question. A question without an
    answer is answered by a function that raises a `ValueError` which names operator and tensor.

    Attributes:
        kind: TensorFlow Lite's name, ``"CONV_2D"``.
        schema: how its options are stored in a file.
        check: from the operator, its operands (None where one is left out) and its result to the
            shape that the result must have; raises `checks.Problem`.
        xnnpack: whether XNNPACK takes it, given the operands that are present and the result.
        reference: from a step and the operands' values to the result, as the kernels compute it.
        macs: multiply-accumulates on one sample, from operands and result.
        keeps: which integers the result may have.
        obstacle: what keeps it, with operands and result of these types, from being certified; an
            empty string if nothing does.
        interval: from a step and the operands' boxes to the box of the result: sound, in integers.
        norm: its Lipschitz constant in L2 and real units, in each operand that is no constant, or
            the linear map that it is the norm of; of a step.
        stacked: whether several operands land in, or are chosen for, separate entries, so that the
            constants of what is before them combine as a root of squares and not as a sum.
        several: whether it may have several results; each is then checked and computed by itself.
        rounding_error: by how many steps the result can differ from the real one; of a step.
        int16_in: the kernel sets that have it right with a result of int16 (symmetric), keys of
            `KERNEL_SETS`; none: it takes no int16.
        missing_in: the kernel sets that do not have it, or have it wrong, likewise.
        twin: the module in this package whose ``build`` makes the differentiable form.
    """

    kind: str
    schema: OperatorSchema
    check: Callable[[Operator, Operands, Tensor], Shape]
    xnnpack: Callable[[Sequence[Tensor], Tensor], bool]
    reference: Callable[[Step, list[np.ndarray]], np.ndarray]
    macs: Callable[[Operands, Tensor], int]
    keeps: Keeps
    obstacle: Callable[[Sequence[Tensor], Tensor], str]
    interval: Callable[[Step, list[Box]], Box]
    norm: Callable[[Step], float | LinearPart]
    stacked: bool
    several: bool
    rounding_error: Callable[[Step], float]
    int16_in: Collection[str]
    missing_in: tuple[str, ...]
    twin: str

    def step(
        self,
        operator: Operator,
        inputs: list[Tensor],
        output: Tensor,
        kernels: str,
        place: int = 0,
    ) -> Step:
        """The operator about to run.

        Args:
            operator: the operator.
            inputs: the operands that are present.
            output: the result.
            kernels: the kernel set, a key of `KERNEL_SETS`.
            place: which of its results that is.

        Raises:
            ValueError: the kernel set does not have it.
        """
        self.require_kernel(output, kernels)
        chosen = KERNEL_SETS[kernels]
        takes = chosen.xnnpack and self.xnnpack(inputs, output)
        return Step(operator, inputs, output, chosen, takes, place)

    def require_kernel(self, output: Tensor, kernels: str) -> None:
        """Raise unless a kernel set has the operator.

        Args:
            output: the result.
            kernels: the kernel set, a key of `KERNEL_SETS`.

        Raises:
            ValueError: it does not; those that do are named.
        """
        missing = self.lacking(output)
        if kernels in missing:
            others = [name for name in KERNEL_SETS if name not in missing]
            raise ValueError(
                f"operator {self.kind}, which computes {output.name!r}: the kernel set {kernels!r} "
                f"lacks it for {output.dtype}; those that have it: {', '.join(others)}"
            )

    def lacking(self, output: Tensor) -> set[str]:
        """The kernel sets that do not have it with a result of this type, or have it wrong.

        Args:
            output: the result.
        """
        right = self.int16_in if output.dtype == "int16" else KERNEL_SETS
        return {name for name in KERNEL_SETS if name in self.missing_in or name not in right}


def unless_int4_or_int16(inputs: Sequence[Tensor], output: Tensor) -> bool:
    """XNNPACK takes it, unless weights are int4 or activations int16: so with most operators."""
    return all(tensor.dtype not in ("int4", "int16") for tensor in (*inputs, output))


def any_type(inputs: Sequence[Tensor], output: Tensor) -> str:
    """No obstacle: integers and floats are treated alike."""
    del inputs, output
    return ""


def integers_only(inputs: Sequence[Tensor], output: Tensor) -> str:
    """An obstacle where a tensor holds floats."""
    if any(tensor.dtype == "float32" for tensor in (*inputs, output)):
        return "runs on float32; only integer arithmetic is certified"
    return ""


def no_macs(operands: Operands, output: Tensor) -> int:
    """No multiply-accumulates."""
    del operands, output
    return 0


def non_expansive(step: Step) -> float:
    """The constant of what only moves, selects or renames values, and of sums in each term."""
    del step
    return 1.0


def exact(step: Step) -> float:
    """No rounding."""
    del step
    return 0.0


def increasing(
    reference: Callable[[Step, list[np.ndarray]], np.ndarray],
) -> Callable[[Step, list[Box]], Box]:
    """The interval rule of an operator that grows with each operand: its corners."""

    def interval(step: Step, boxes: list[Box]) -> Box:
        low, high = (step.typed(reference(step, [box[side] for box in boxes])) for side in (0, 1))
        return low, high

    return interval
