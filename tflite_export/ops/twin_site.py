"""Where the differentiable form of an operator is built, and how its result is finished.

Values are *centred integers*, ``q - zero_point``, held in float32, which is exact below 2**24 in
magnitude. A centred zero is the real zero, so zero padding is the kernels' padding. Rounding has
the gradient of the identity, clamping that of clamping, as in training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from tflite_export.ir.graph import Operator, Tensor, activation_range
from tflite_export.ops.spec import KernelSet
from tflite_export.ops.twin_rounding import Reach, straight_through

Kernel = Callable[[Sequence[Any]], Any]
"""From the operands that are no constants to the result, centred integers all."""


@dataclass(frozen=True)
class Site:
    """Where a kernel is built: the operator, its tensors, how large its operands can be.

    Attributes:
        operator: the operator.
        inputs: the operands that are present.
        output: the result.
        spans: for each operand, the smallest and largest ``q - zero_point`` it can hold.
        kernels: the kernel set to imitate.
        xnnpack: whether XNNPACK computes it in this kernel set.
        constant: makes a variable of an array, which compilers do not fold into convolutions or
            turn into a reciprocal.
        place: which of the operator's results ``output`` is.
    """

    operator: Operator
    inputs: list[Tensor]
    output: Tensor
    spans: list[tuple[int, int]]
    kernels: KernelSet
    xnnpack: bool
    constant: Callable[[np.ndarray], keras.Variable]
    place: int = 0

    @property
    def largest(self) -> int:
        """The largest ``|q - zero_point|`` of the first operand."""
        return max(abs(end) for end in self.spans[0])


def both_operands(site: Site) -> Callable[[Sequence[Any]], list[Any]]:
    """From the operands that are no constants to all operands, in their order."""
    held = [
        site.constant(tensor.data.astype(np.float32) - np.float32(tensor.zero_point))
        if tensor.data is not None
        else None
        for tensor in site.inputs
    ]

    def every(operands: Sequence[Any]) -> list[Any]:
        moving = iter(operands)
        return [
            next(moving) if constant is None else ops.convert_to_tensor(constant)
            for constant in held
        ]

    return every


def clamp_range(operator: Operator, output: Tensor) -> tuple[int, int]:
    """The centred integers that an operator can leave in its output: type and fused activation."""
    low, high = activation_range(getattr(operator.options, "activation", "NONE"), output)
    return low - output.zero_point, high - output.zero_point


def finish(site: Site, exact: Any, smooth: Any, reach: Reach | None = None) -> Any:
    """Clamp to the type and the fused activation, with straight-through gradients."""
    low, high = clamp_range(site.operator, site.output)
    rectified = getattr(site.operator.options, "activation", "NONE").startswith("RELU")
    return straight_through(exact, smooth, low, high, rectified, reach)
