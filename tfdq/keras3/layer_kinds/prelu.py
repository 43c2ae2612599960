"""PReLU: what is negative times a trained slope of its channel.

It is deployed as four operators that the default kernels take, the values above 0 and those below
by themselves; the model looks up what they make of each of the 256 integers in each channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from tfdq.description import Call, Computation, Shape
from tfdq.grid import Grid
from tfdq.keras3.graph import Node
from tfdq.keras3.layer_kinds.base import (
    Flow,
    Phase,
    QuantizedLayer,
    Sealing,
    integer_shape,
    register,
)
from tfdq.keras3.layer_kinds.function import table_of
from tfdq.keras3.layer_kinds.registry import Kind, Request, Step, register_kind
from tfdq.keras3.ranges import OutputRange, RangeSettings
from tfdq.keras3.rounding import between, round_through, with_gradient_of
from tfdq.settings.quantization import LINEAR_BITS
from tflite_export.ir.graph import INTEGER_RANGES
from tflite_export.lowering import lower

_VALUES = 256
_SMALLEST_SLOPE = 2.0**-8
"""Slopes are in steps of the largest, or of this one if all are smaller."""


@dataclass(frozen=True)
class SlopedBelowZero(Computation):
    """What is negative times a slope.

    Attributes:
        slopes: float64 ``(channels,)``.
    """

    slopes: np.ndarray


@lower.lowering(SlopedBelowZero)
def lower_sloped(call: lower.Call) -> int:
    """Return the tensor of the sum of what is above 0 and what is below."""
    assembler, label, slopes = call.assembler, call.label, call.computation.slopes
    low, high = INTEGER_RANGES["int8"]
    step = assembler.grid(call.source).scale
    above = assembler.rescale(call.source, Grid(step, low), label)
    below = assembler.rescale(call.source, Grid(step, high), label)
    largest = step * max(float(np.abs(slopes).max()), _SMALLEST_SLOPE)
    # Slopes of both signs take twice the range.
    goal = Grid(largest, high) if (slopes >= 0).all() else Grid(2 * largest, 0)
    sloped = assembler.rescale(below, goal, label, slopes)
    return assembler.add([(above, 1.0), (sloped, 1.0)], call.target, label)


@register
class QuantizedPReLU(QuantizedLayer):
    """What is negative times a trained slope of its channel, on a grid of its own.

    Args:
        output: `RangeSettings` of the result.
        regularizer: config of the slopes' regularizer, or None.
        constraint: config of their constraint, or None.
    """

    sealed_sources = 1
    variable_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {"slopes": ("alpha",)}

    def __init__(
        self,
        output: RangeSettings | dict[str, Any],
        regularizer: Any = None,
        constraint: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.output_settings = RangeSettings.of(output)
        self.regularizer = regularizer
        self.constraint = constraint

    def build(self, input_shape: Any) -> None:
        """Create the slopes, the range, and the table of each channel."""
        channels = integer_shape(input_shape)[-1]
        assert channels is not None
        if "slopes" not in self.shares:
            self.alpha = self.add_weight(
                name="alpha",
                shape=(channels,),
                initializer="zeros",
                regularizer=keras.regularizers.get(self.regularizer),
                constraint=keras.constraints.get(self.constraint),
                dtype="float32",
                autocast=False,
            )
        self.range = OutputRange(self, self.output_settings)
        self.table = self.add_constant("table", (channels, _VALUES))
        self.first = self.add_constant("first", ())
        self.build_seal()

    def result_shape(self, shapes: Any) -> Shape:
        """Return the shape of the source."""
        return tuple(shapes)

    def _values(self, flow: Flow) -> Any:
        q, step = flow
        return (ops.relu(q) - self.alpha * ops.relu(-q)) * step

    def train(self, flow: Any, phase: Phase) -> Flow:
        """Return the result in training."""
        values = self._values(flow)
        seen = ops.stop_gradient(values)
        steps = self.range.observe(ops.min(seen), ops.max(seen), phase.ranges)
        return round_through(
            between(values * (1.0 / steps.step), steps.low, steps.high)
        ), steps.step

    def infer(self, flow: Any) -> Flow:
        """Return the result that the deployed operators give."""
        q, step = flow
        places = ops.cast(ops.stop_gradient(q) - ops.convert_to_tensor(self.first), "int32")
        own = np.arange(self.alpha.shape[0], dtype=np.int32) * _VALUES
        places = ops.clip(places, 0, _VALUES - 1) + ops.convert_to_tensor(own)
        exact = ops.take(ops.reshape(ops.convert_to_tensor(self.table), (-1,)), places)
        bounds = ops.convert_to_tensor(self.sealed_bounds)
        inverse = 1.0 / ops.maximum(self.sealed_result, 1e-30)
        smooth = between(self._values(flow) * inverse, bounds[0], bounds[1])
        return with_gradient_of(exact, smooth), self.deployed_step(step)

    def computation(self) -> Computation:
        """Return what the layer computes."""
        return SlopedBelowZero(np.asarray(ops.convert_to_numpy(self.alpha), np.float64))

    def grid(self) -> Grid:
        """Return the grid of the result."""
        return self.range.grid()

    def describe(self, sources: tuple[int, ...], shape: Shape) -> Call:
        """Return the layer's entry in the description of a model."""
        bits = (None, self.output_settings.bits)
        return Call(self.name, self.computation(), sources, shape, self.grid(), bits=bits)

    def seal(self, sealing: Sealing) -> None:
        """Tabulate what the deployed operators make of each integer in each channel."""
        source, output = (sealing.graph.tensors[i] for i in (sealing.sources[0], sealing.result))
        self.table.assign(table_of(sealing).T.astype(np.float32) - np.float32(output.zero_point))
        self.first.assign(np.float32(INTEGER_RANGES["int8"][0] - source.zero_point))
        self.set_seal(sealing)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        config = {
            "output": self.output_settings.config(),
            "regularizer": self.regularizer,
            "constraint": self.constraint,
        }
        return {**super().get_config(), **config}


def _quantize(request: Request) -> QuantizedPReLU:
    config = request.layer.get_config()
    return QuantizedPReLU(
        RangeSettings(LINEAR_BITS),
        regularizer=config["alpha_regularizer"],
        constraint=config["alpha_constraint"],
        trainable=request.layer.trainable,
        **request.common,
    )


def _problem(node: Node) -> str | None:
    shape = tuple(node.layer.alpha.shape)
    if any(size != 1 for size in shape[:-1]):
        return (
            f"slopes of shape {shape}; use one for each channel, "
            f"shared_axes={list(range(1, len(node.shape) - 1))}"
        )
    return None


def _load(step: Step, layer: Any) -> None:
    layer.alpha.assign(ops.convert_to_numpy(step.node.layer.alpha).reshape(-1))


register_kind(Kind((keras.layers.PReLU,), _quantize, _problem, load=_load, group="slopes"))
