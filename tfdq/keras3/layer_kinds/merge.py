"""Sums, differences and means of several tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.src.applications.inception_resnet_v2 import CustomScaleLayer

from tfdq.description import Add, Call, Computation, Shape, repeated_shape
from tfdq.grid import Grid
from tfdq.keras3.graph import Node
from tfdq.keras3.layer_kinds.base import (
    AT_REST,
    Box,
    Flow,
    Phase,
    QuantizedLayer,
    Sealing,
    register,
)
from tfdq.keras3.layer_kinds.registry import OPERATIONS, Kind, Request, ranks_problem, register_kind
from tfdq.keras3.layer_kinds.rescaled import CONSTANTS, rescaled, rescaling
from tfdq.keras3.layer_kinds.scaling import by_number, by_number_problem
from tfdq.keras3.learned_steps import range_of
from tfdq.keras3.ranges import RangeSettings
from tfdq.keras3.rounding import between, round_through, with_gradient_of
from tflite_export.ir.graph import activation_range
from tflite_export.ops import OPERATORS
from tflite_export.ops.sums import add_multipliers


@register
class QuantizedAdd(QuantizedLayer):
    """A sum of two or more tensors, with a ReLU or ReLU6 if it took one in.

    Args:
        output: `RangeSettings` of the sum.
        terms: number of sources.
        activation: ``"linear"``, ``"relu"`` or ``"relu6"``.
        coefficients: what each source is multiplied by, not 0; None: 1.
    """

    merges = True

    def __init__(
        self,
        output: RangeSettings | dict[str, Any],
        terms: int,
        activation: str = "linear",
        coefficients: Sequence[float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.output_settings = RangeSettings.of(output)
        self.activation = activation
        self.terms = self.sealed_sources = int(terms)
        given = (1.0,) * self.terms if coefficients is None else coefficients
        self.coefficients = tuple(float(coefficient) for coefficient in given)

    def build(self, input_shape: Any) -> None:
        """Create the range and the deployed constants."""
        self.range = range_of(self, self.output_settings)
        self.operands = self.add_constant("operands", (self.terms - 1, 2, CONSTANTS))
        # Of each addition: the two factors, the shift, the lowest and the highest result.
        self.additions = self.add_constant("additions", (self.terms - 1, 5))
        self.build_seal()

    def result_shape(self, shapes: Any) -> Shape:
        """Return the shape that all sources repeat to."""
        return reduce(repeated_shape, shapes)

    def train(self, flow: Any, phase: Phase) -> Flow:
        """Return the sum in training."""
        total = sum(
            q * (step * coefficient)
            for (q, step), coefficient in zip(flow, self.coefficients, strict=True)
        )
        if self.activation != "linear":
            total = ops.relu(total) if self.activation == "relu" else ops.relu6(total)
        steps = self.range.take(total, phase.ranges)
        low = steps.low if self.activation == "linear" else ops.maximum(steps.low, 0.0)
        scaled = between(total * (1.0 / steps.step), low, steps.high)
        return round_through(scaled), steps.step

    def interval(self, box: Any) -> Box:
        """Return the sums of the ends; those of what is subtracted change places."""
        ends = [
            (low, high) if coefficient > 0 else (high, low)
            for (low, high), coefficient in zip(box, self.coefficients, strict=True)
        ]
        low, high = zip(*ends, strict=True)
        return self.train(low, AT_REST), self.train(high, AT_REST)

    def infer(self, flow: Any) -> Flow:
        """Return the sum as the deployed additions give it."""
        operands = ops.convert_to_tensor(self.operands)
        additions = ops.convert_to_tensor(self.additions)
        total = flow[0][0]
        for position in range(self.terms - 1):
            left = rescaled(total, operands[position, 0])
            right = rescaled(flow[position + 1][0], operands[position, 1])
            total = _added(left, right, additions[position])
        bounds = ops.convert_to_tensor(self.sealed_bounds)
        total = between(total, bounds[0], bounds[1])
        return total, self.deployed_step(*(step for _, step in flow))

    def computation(self) -> Computation:
        """Return what the layer computes."""
        return Add(self.coefficients)

    def grid(self) -> Grid:
        """Return the grid of the sum."""
        return self.range.grid()

    def describe(self, sources: tuple[int, ...], shape: Shape) -> Call:
        """Return the layer's entry in the description of a model."""
        bits = (None, self.output_settings.bits)
        return Call(
            self.name, self.computation(), sources, shape, self.grid(), self.activation, bits
        )

    def seal(self, sealing: Sealing) -> None:
        """Take the constants of each addition from the operators that the layer became.

        Raises:
            ValueError: a step is too far from that of the sum for the default kernels.
        """
        graph = sealing.graph
        adders = [op for op in sealing.operators if op.kind in ("ADD", "SUB")]
        operands = np.zeros((self.terms - 1, 2, CONSTANTS), np.float32)
        additions = np.zeros((self.terms - 1, 5), np.float32)
        total = sealing.sources[0]
        for position, operator in enumerate(adders):
            output = graph.tensors[operator.outputs[0]]
            inputs = [graph.tensors[i] for i in operator.inputs]
            if not OPERATORS[operator.kind].xnnpack(inputs, output):
                raise ValueError(
                    f"layer {self.name!r} adds tensors whose steps, "
                    f"{[float(t.scale) for t in inputs]}, are too far from that of the sum, "
                    f"{float(output.scale)}, for the default kernels; train further, so that no "
                    "branch is nearly zero, or remove the branch"
                )
            for side, source in enumerate((total, sealing.sources[position + 1])):
                operands[position, side] = rescaling(sealing, operator.inputs[side], source)
            factors, shift = add_multipliers([t.scale for t in inputs], output.scale)
            if operator.kind == "SUB":
                factors[1] = -factors[1]
            low, high = activation_range(operator.options.activation, output)  # type: ignore[union-attr]
            ends = (low - output.zero_point, high - output.zero_point)
            additions[position] = (*factors, shift, *ends)
            total = operator.outputs[0]
        self.operands.assign(operands)
        self.additions.assign(additions)
        self.set_seal(sealing)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {
            **super().get_config(),
            "output": self.output_settings.config(),
            "terms": self.terms,
            "activation": self.activation,
            "coefficients": self.coefficients,
        }


def _added(left: Any, right: Any, constants: Any) -> Any:
    """Return a sum of integers on another grid, in the 32 bits that the kernel computes in."""
    first, second, shift = (ops.cast(constants[i], "int32") for i in range(3))
    terms = (ops.cast(ops.stop_gradient(term), "int32") for term in (left, right))
    whole = sum(term * factor for term, factor in zip(terms, (first, second), strict=True))
    half = ops.left_shift(ops.ones_like(shift), shift - 1)
    exact = ops.cast(ops.right_shift(whole + half, shift), "float32")
    unit = ops.power(2.0, -constants[2])
    smooth = left * (constants[0] * unit) + right * (constants[1] * unit)
    return with_gradient_of(
        between(exact, constants[3], constants[4]), between(smooth, constants[3], constants[4])
    )


def _sum(
    coefficients: Callable[[Any, int], Sequence[float]],
) -> Callable[[Request], QuantizedAdd]:
    """Return what makes the sum that a layer is.

    Args:
        coefficients: from the layer and its number of sources to what each is multiplied by.
    """

    def quantize(request: Request) -> QuantizedAdd:
        terms = len(request.source_shapes)
        return QuantizedAdd(
            output=request.output,
            terms=terms,
            activation=request.activation,
            coefficients=coefficients(request.layer, terms),
            **request.common,
        )

    return quantize


def _problem(node: Node) -> str | None:
    if len(node.inputs) < 2:
        return by_number_problem(node)
    if isinstance(node.layer, keras.layers.Subtract) or type(node.layer) in OPERATIONS["subtract"]:
        return ranks_problem(node)
    shapes = [tuple(value.shape) for value in keras.tree.flatten(node.arguments)]
    if len(set(shapes)) > 1:
        return (
            f"a sum of shapes {', '.join(map(str, shapes))}, which the integer kernels do not "
            "repeat; UpSampling2D or Concatenate them to one"
        )
    return None


for _handled, _coefficients in (
    ((keras.layers.Add, *OPERATIONS["add"]), lambda layer, terms: (1.0,) * terms),
    ((keras.layers.Average,), lambda layer, terms: (1.0 / terms,) * terms),
    ((keras.layers.Subtract, *OPERATIONS["subtract"]), lambda layer, terms: (1.0, -1.0)),
    ((CustomScaleLayer,), lambda layer, terms: (1.0, layer.scale)),
):
    register_kind(
        Kind(
            _handled,
            _sum(_coefficients),
            _problem,
            takes_in=("activation",),
            merges=True,
            parts=by_number,
        )
    )
