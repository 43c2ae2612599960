"""Softmax, in units of 1/256 as the integer runtime gives it."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

from tfdq.description import Computation, Shape, Softmax
from tfdq.keras3.layer_kinds.base import Flow, Phase, QuantizedLayer, Sealing, register
from tfdq.keras3.layer_kinds.registry import register_activation
from tfdq.keras3.rounding import between, round_through, with_gradient_of
from tflite_export.ops.softmax import softmax_table

_UNITS = 256.0
_DISTANCES = 256


@register
class QuantizedSoftmax(QuantizedLayer):
    """Probabilities over the last axis, multiples of 1/256."""

    sealed_sources = 1
    own_grid = True

    def build(self, input_shape: Any) -> None:
        """Create the table of exponentials."""
        self.table = self.add_constant("table", (_DISTANCES,))
        self.build_seal()

    def result_shape(self, shapes: Any) -> Shape:
        """Return the shape of the source."""
        return tuple(shapes)

    def train(self, flow: Any, phase: Phase) -> Flow:
        """Return the probabilities in training."""
        q, step = flow
        shares = ops.softmax(q * step) * _UNITS
        return round_through(between(shares, 0.0, _UNITS - 1.0)), ops.full((), 1.0 / _UNITS)

    def infer(self, flow: Any) -> Flow:
        """Return the probabilities that the deployed operator gives."""
        q, step = flow
        whole = ops.stop_gradient(q)
        distances = ops.cast(ops.max(whole, axis=-1, keepdims=True) - whole, "int32")
        distances = ops.clip(distances, 0, _DISTANCES - 1)
        weights = ops.take(ops.convert_to_tensor(self.table), distances)
        # One class after the other, as the kernel adds them: another order rounds otherwise.
        total = weights[..., :1]
        for position in range(1, weights.shape[-1]):
            total = total + weights[..., position : position + 1]
        shares = weights * (1.0 / (total * (1.0 / _UNITS)))
        below = ops.floor(shares)
        rounded = below + ops.cast(shares >= below + 0.5, "float32")
        smooth = ops.softmax(q * step) * _UNITS
        exact = between(rounded, 0.0, _UNITS - 1.0)
        return with_gradient_of(exact, between(smooth, 0.0, _UNITS - 1.0)), self.deployed_step(step)

    def computation(self) -> Computation:
        """Return what the layer computes."""
        return Softmax()

    def seal(self, sealing: Sealing) -> None:
        """Tabulate the exponentials for the step of the source."""
        self.table.assign(softmax_table(sealing.scale(sealing.sources[0]), 1.0).astype(np.float32))
        self.set_seal(sealing)


register_activation("softmax", QuantizedSoftmax)
