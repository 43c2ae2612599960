"""Layers with several sources: Add and Concatenate."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from tfdq.description import Add, Call, Computation, Concatenate, Shape
from tfdq.grid import Grid
from tfdq.keras3.graph import Node
from tfdq.keras3.layer_kinds.base import Flow, Phase, QuantizedLayer, Sealing, register
from tfdq.keras3.layer_kinds.registry import OPERATIONS, Kind, Request, register_kind
from tfdq.keras3.layer_kinds.rescaled import CONSTANTS, rescaled, rescaling
from tfdq.keras3.ranges import OutputRange, RangeSettings
from tfdq.keras3.rounding import between, round_through, with_gradient_of
from tfdq.keras3.settings import LINEAR_BITS
from tflite_export.ir.graph import activation_range
from tflite_export.ops import OPERATORS
from tflite_export.ops.sums import add_multipliers


@register
class QuantizedAdd(QuantizedLayer):
    """The sum of two or more tensors, with a ReLU or ReLU6 if it took one in.

    Args:
        output: `RangeSettings` of the sum.
        activation: ``"linear"``, ``"relu"`` or ``"relu6"``.
        terms: number of sources.
    """

    merges = True

    def __init__(
        self,
        output: RangeSettings | dict[str, Any],
        terms: int,
        activation: str = "linear",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.output_settings = RangeSettings.of(output)
        self.activation = activation
        self.terms = self.sealed_sources = int(terms)

    def build(self, input_shape: Any) -> None:
        """Create the range and the deployed constants."""
        self.range = OutputRange(self, self.output_settings)
        self.operands = self.add_constant("operands", (self.terms - 1, 2, CONSTANTS))
        # Of each addition: the two factors, the shift, the lowest and the highest result.
        self.additions = self.add_constant("additions", (self.terms - 1, 5))
        self.build_seal()

    def result_shape(self, shapes: Any) -> Shape:
        """Return the shape of each source."""
        return tuple(shapes[0])

    def train(self, flow: Any, phase: Phase) -> Flow:
        """Return the sum in training."""
        total = sum(q * step for q, step in flow)
        if self.activation != "linear":
            total = ops.relu(total) if self.activation == "relu" else ops.relu6(total)
        values = ops.stop_gradient(total)
        steps = self.range.observe(ops.min(values), ops.max(values), phase.ranges)
        low = steps.low if self.activation == "linear" else ops.maximum(steps.low, 0.0)
        scaled = between(total * (1.0 / steps.step), low, steps.high)
        return round_through(scaled), steps.step

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
        return Add((1.0,) * self.terms)

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
        adders = [op for op in sealing.operators if op.kind == "ADD"]
        operands = np.zeros((self.terms - 1, 2, CONSTANTS), np.float32)
        additions = np.zeros((self.terms - 1, 5), np.float32)
        total = sealing.sources[0]
        for position, operator in enumerate(adders):
            output = graph.tensors[operator.outputs[0]]
            inputs = [graph.tensors[i] for i in operator.inputs]
            if not OPERATORS["ADD"].xnnpack(inputs, output):
                raise ValueError(
                    f"layer {self.name!r} adds tensors whose steps, "
                    f"{[float(t.scale) for t in inputs]}, are too far from that of the sum, "
                    f"{float(output.scale)}, for the default kernels; train further, so that no "
                    "branch is nearly zero, or remove the branch"
                )
            for side, source in enumerate((total, sealing.sources[position + 1])):
                operands[position, side] = rescaling(sealing, operator.inputs[side], source)
            factors, shift = add_multipliers([t.scale for t in inputs], output.scale)
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


@register
class QuantizedConcatenate(QuantizedLayer):
    """Tensors side by side, along their channels.

    Args:
        output: `RangeSettings` of the grid that all are brought onto; None: they are on one.
        sources: number of sources.
    """

    merges = True

    def __init__(
        self, output: RangeSettings | dict[str, Any] | None, sources: int, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.output_settings = None if output is None else RangeSettings.of(output)
        self.sources = int(sources)
        self.sealed_sources = 0 if output is None else self.sources

    def build(self, input_shape: Any) -> None:
        """Create the range and the deployed constants."""
        self.range: OutputRange | None = None
        if self.output_settings is not None:
            self.range = OutputRange(self, self.output_settings)
            self.operands = self.add_constant("operands", (self.sources, CONSTANTS))
            self.build_seal()

    def result_shape(self, shapes: Any) -> Shape:
        """Return the shape of all sources together."""
        return (*shapes[0][:-1], sum(shape[-1] for shape in shapes))

    def train(self, flow: Any, phase: Phase) -> Flow:
        """Return the sources side by side, in training."""
        if self.range is None:
            return self.infer(flow)
        values = ops.concatenate([q * step for q, step in flow], axis=-1)
        seen = ops.stop_gradient(values)
        steps = self.range.observe(ops.min(seen), ops.max(seen), phase.ranges)
        return round_through(
            between(values * (1.0 / steps.step), steps.low, steps.high)
        ), steps.step

    def infer(self, flow: Any) -> Flow:
        """Return the sources side by side, on one grid."""
        if self.range is None:
            return ops.concatenate([q for q, _ in flow], axis=-1), flow[0][1]
        operands = ops.convert_to_tensor(self.operands)
        parts = [rescaled(q, operands[position]) for position, (q, _) in enumerate(flow)]
        return ops.concatenate(parts, axis=-1), self.deployed_step(*(step for _, step in flow))

    def computation(self) -> Computation:
        """Return what the layer computes."""
        return Concatenate(self.rank - 1)

    def describe(self, sources: tuple[int, ...], shape: Shape) -> Call:
        """Return the layer's entry in the description of a model."""
        self.rank = len(shape)
        return super().describe(sources, shape)

    def grid(self) -> Grid | None:
        """Return the grid of the result; None: that of the sources."""
        return None if self.range is None else self.range.grid()

    def seal(self, sealing: Sealing) -> None:
        """Take the changes of grid from the operators in front of the concatenation."""
        if self.range is None:
            return
        joined = next(op for op in sealing.operators if op.kind == "CONCATENATION")
        pairs = zip(joined.inputs, sealing.sources, strict=True)
        self.operands.assign(np.asarray([rescaling(sealing, *pair) for pair in pairs], np.float32))
        self.set_seal(sealing)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        settings = self.output_settings
        return {
            **super().get_config(),
            "output": None if settings is None else settings.config(),
            "sources": self.sources,
        }


def _add(request: Request) -> QuantizedAdd:
    terms = len(request.source_shapes)
    return QuantizedAdd(
        output=request.output, terms=terms, activation=request.activation, **request.common
    )


def _add_problem(node: Node) -> str | None:
    if len(node.inputs) < 2:
        return "a sum with a number or a constant; use a layer, such as a bias, in front"
    return None


def _concatenate(request: Request) -> QuantizedConcatenate:
    return QuantizedConcatenate(
        output=_joint_range(request), sources=len(request.source_shapes), **request.common
    )


def _joint_range(request: Request) -> RangeSettings | None:
    """Return the range of a concatenation; None where all sources are on one grid."""
    grids = request.source_grids
    if len(set(grids)) == 1:
        return None
    fixed = [grid for grid in grids if isinstance(grid, RangeSettings)]
    if len(fixed) == len(grids) and len({grid.fixed for grid in fixed}) == 1:
        return max(fixed, key=lambda grid: grid.bits)
    return RangeSettings(LINEAR_BITS)


def _concatenate_problem(node: Node) -> str | None:
    if len(node.inputs) < 2:
        return "a Concatenate of one tensor"
    if node.layer.axis not in (-1, len(node.shape) - 1):
        return "a Concatenate along another axis than the last"
    return None


register_kind(
    Kind(
        (keras.layers.Add, *OPERATIONS["add"]),
        _add,
        _add_problem,
        takes_in=("activation",),
        merges=True,
    )
)
register_kind(Kind((keras.layers.Concatenate,), _concatenate, _concatenate_problem, merges=True))
