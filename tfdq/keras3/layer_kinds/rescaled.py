"""A source brought onto another grid by an operator of its own, or left as it is."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

from tfdq.keras3.layer_kinds.affine import WEIGHTED
from tfdq.keras3.layer_kinds.base import Sealing
from tfdq.keras3.rounding import between, with_gradient_of
from tflite_export.ir.graph import activation_range
from tflite_export.ir.requantization import requantization_scale

CONSTANTS = 4
"""Numbers of one change of grid: weight, factor, lowest and highest result."""
_SAME_INTEGERS = 1e-3
"""A factor this near 1 changes no integer of 8 bits, a difference of two included."""
_UNCHANGED = (1.0, 1.0, -512.0, 512.0)


def rescaled(q: Any, constants: Any) -> Any:
    """Return ``clip(rint(q * weight * factor), low, high)``, as a 1 x 1 convolution computes it.

    Args:
        q: integers.
        constants: the four numbers, as `rescaling` gives them.
    """
    weight, factor, low, high = (constants[i] for i in range(CONSTANTS))
    values = q * weight * factor
    return with_gradient_of(
        between(ops.round(ops.stop_gradient(values)), low, high), between(values, low, high)
    )


def rescaling(sealing: Sealing, tensor: int, source: int) -> tuple[float, ...]:
    """Return the constants that lead from a source to a tensor made of it.

    Args:
        sealing: the integer form of the call.
        tensor: what an operator of the call reads.
        source: what it is made of: the tensor itself, or by one change of grid.
    """
    producers = {op.outputs[0]: op for op in sealing.operators}
    graph, low, high = sealing.graph, -512, 512
    weight, factor, sign, changed = 1.0, np.float32(1.0), 1.0, False
    while tensor != source:
        operator = producers[tensor]
        tensor = operator.inputs[0]
        if operator.kind not in WEIGHTED:
            continue
        output = graph.tensors[operator.outputs[0]]
        weights = graph.tensors[operator.inputs[1]]
        assert weights.data is not None
        assert weights.quantization is not None
        own_weight = float(weights.data.reshape(-1)[0])
        own_factor = requantization_scale(
            graph.tensors[tensor].scale, weights.quantization.scale[:1], output.scale
        )[0]
        # Walked backwards: what is met behind the change of grid saturates; what is met in front of
        # it turns the sign at most, and saturates nothing.
        if not changed:
            ends = activation_range(operator.options.activation, output)  # type: ignore[union-attr]
            low, high = (
                max(low, ends[0] - output.zero_point),
                min(high, ends[1] - output.zero_point),
            )
        if abs(abs(own_weight * own_factor) - 1.0) < _SAME_INTEGERS:
            sign *= float(np.sign(own_weight))
        else:
            weight, factor, changed = own_weight, own_factor, True
    if (low, high) == (-512, 512):
        return _UNCHANGED
    return weight * sign, float(factor), float(low), float(high)
