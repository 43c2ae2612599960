"""Layers that bring their sources onto one grid: Concatenate, Maximum, Minimum."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import reduce
from typing import Any

import keras
import numpy as np
from keras import ops

from tfdq.description import Call, Computation, Concatenate, Shape
from tfdq.grid import Grid
from tfdq.keras3.graph import Node
from tfdq.keras3.layer_kinds.base import Flow, Phase, QuantizedLayer, Sealing, register
from tfdq.keras3.layer_kinds.registry import OPERATIONS, Kind, Request, register_kind
from tfdq.keras3.layer_kinds.rescaled import CONSTANTS, rescaled, rescaling
from tfdq.keras3.ranges import OutputRange, RangeSettings
from tfdq.keras3.rounding import between, round_through
from tfdq.settings.quantization import LINEAR_BITS
from tflite_export.lowering import lower


@dataclass(frozen=True)
class Choice(Computation):
    """The larger or the smaller of the sources, entry by entry, on one grid.

    Attributes:
        operator: ``"MAXIMUM"`` or ``"MINIMUM"``.
    """

    operator: str


@lower.lowering(Choice)
def lower_choice(call: lower.Call) -> int:
    """Return the tensor of the choice."""
    own = call.described.grid
    target = call.assembler.grid(call.source) if own is None else call.target
    return call.assembler.choose(call.computation.operator, call.sources, target, call.label)


class OneGridLayer(QuantizedLayer):
    """A layer of several sources that moves or chooses integers of one grid.

    Args:
        output: `RangeSettings` of the grid that all are brought onto; None: they are on one.
        sources: number of sources.
    """

    merges = True
    rising = True

    def __init__(
        self, output: RangeSettings | dict[str, Any] | None, sources: int, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.output_settings = None if output is None else RangeSettings.of(output)
        self.sources = int(sources)
        self.sealed_sources = 0 if output is None else self.sources

    @abstractmethod
    def combine(self, values: list[Any]) -> Any:
        """Return the result of integers, or reals, of one grid."""

    @abstractmethod
    def aligned(self, sealing: Sealing) -> list[int]:
        """Return the tensors, one for each source, that the deployed operators combine."""

    def build(self, input_shape: Any) -> None:
        """Create the range and the deployed constants."""
        self.range: OutputRange | None = None
        if self.output_settings is not None:
            self.range = OutputRange(self, self.output_settings)
            self.operands = self.add_constant("operands", (self.sources, CONSTANTS))
            self.build_seal()

    def train(self, flow: Any, phase: Phase) -> Flow:
        """Return the result in training."""
        if self.range is None:
            return self.infer(flow)
        values = self.combine([q * step for q, step in flow])
        seen = ops.stop_gradient(ops.stack([end(q * step) for q, step in flow for end in _ENDS]))
        steps = self.range.observe(ops.min(seen), ops.max(seen), phase.ranges)
        return round_through(
            between(values * (1.0 / steps.step), steps.low, steps.high)
        ), steps.step

    def infer(self, flow: Any) -> Flow:
        """Return the result, on one grid."""
        if self.range is None:
            return self.combine([q for q, _ in flow]), flow[0][1]
        operands = ops.convert_to_tensor(self.operands)
        parts = [rescaled(q, operands[position]) for position, (q, _) in enumerate(flow)]
        return self.combine(parts), self.deployed_step(*(step for _, step in flow))

    def grid(self) -> Grid | None:
        """Return the grid of the result; None: that of the sources."""
        return None if self.range is None else self.range.grid()

    def seal(self, sealing: Sealing) -> None:
        """Take the changes of grid from the operators in front of the combination."""
        if self.range is None:
            return
        pairs = zip(self.aligned(sealing), sealing.sources, strict=True)
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


_ENDS = (ops.min, ops.max)


@register
class QuantizedConcatenate(OneGridLayer):
    """Tensors side by side.

    Args:
        axis: along which they lie, not 0.
    """

    def __init__(self, axis: int = -1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.axis = int(axis)

    def combine(self, values: list[Any]) -> Any:
        """Return the values side by side."""
        return ops.concatenate(values, axis=self.axis)

    def aligned(self, sealing: Sealing) -> list[int]:
        """Return what the concatenation takes."""
        joined = next(op for op in sealing.operators if op.kind == "CONCATENATION")
        return list(joined.inputs)

    def result_shape(self, shapes: Any) -> Shape:
        """Return the shape of all sources together."""
        result = list(shapes[0])
        result[self.axis] = sum(shape[self.axis] for shape in shapes)
        return tuple(result)

    def computation(self) -> Computation:
        """Return what the layer computes."""
        return Concatenate(self.axis % self.rank)

    def describe(self, sources: tuple[int, ...], shape: Shape) -> Call:
        """Return the layer's entry in the description of a model."""
        self.rank = len(shape)
        return super().describe(sources, shape)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {**super().get_config(), "axis": self.axis}


@register
class QuantizedChoice(OneGridLayer):
    """The larger or the smaller of tensors of one shape, entry by entry.

    Args:
        operator: ``"MAXIMUM"`` or ``"MINIMUM"``.
    """

    def __init__(self, operator: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.operator = operator

    def combine(self, values: list[Any]) -> Any:
        """Return the chosen values."""
        return reduce(ops.maximum if self.operator == "MAXIMUM" else ops.minimum, values)

    def aligned(self, sealing: Sealing) -> list[int]:
        """Return what the operators choose from, one after the other."""
        first, *rest = [op.inputs for op in sealing.operators if op.kind == self.operator]
        return [*first, *(inputs[1] for inputs in rest)]

    def result_shape(self, shapes: Any) -> Shape:
        """Return the shape of each source."""
        return tuple(shapes[0])

    def computation(self) -> Computation:
        """Return what the layer computes."""
        return Choice(self.operator)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {**super().get_config(), "operator": self.operator}


def _joint_range(request: Request) -> RangeSettings | None:
    """Return the range of several sources together; None where all are on one grid."""
    grids = request.source_grids
    if len(set(grids)) == 1:
        return None
    fixed = [grid for grid in grids if isinstance(grid, RangeSettings)]
    if len(fixed) == len(grids) and len({grid.fixed for grid in fixed}) == 1:
        return max(fixed, key=lambda grid: grid.bits)
    return RangeSettings(LINEAR_BITS)


def _arguments(request: Request) -> dict[str, Any]:
    return {
        "output": _joint_range(request),
        "sources": len(request.source_shapes),
        **request.common,
    }


def _concatenate(request: Request) -> QuantizedConcatenate:
    return QuantizedConcatenate(axis=request.layer.axis, **_arguments(request))


def _concatenate_problem(node: Node) -> str | None:
    if len(node.inputs) < 2:
        return "a Concatenate of one tensor"
    if node.layer.axis % len(node.shape) == 0:
        return "a Concatenate along the batch; use another axis"
    return None


def _maximum(request: Request) -> QuantizedChoice:
    return QuantizedChoice("MAXIMUM", **_arguments(request))


def _minimum(request: Request) -> QuantizedChoice:
    return QuantizedChoice("MINIMUM", **_arguments(request))


def _relu(node: Node) -> list[keras.layers.Layer] | None:
    """Return the ReLU that the maximum of a tensor and 0 is."""
    return [keras.layers.ReLU(name=node.layer.name)] if _is_relu(node) else None


def _is_relu(node: Node) -> bool:
    numbers = [value for value in node.arguments if not isinstance(value, keras.KerasTensor)]
    return (
        type(node.layer) in OPERATIONS["maximum"]
        and [np.size(n) for n in numbers] == [1]
        and (float(np.squeeze(numbers[0])) == 0.0)
    )


def _choice_problem(node: Node) -> str | None:
    if _is_relu(node):
        return None
    if len(node.inputs) < 2:
        return "a choice between a tensor and a number; use ReLU, with max_value for an upper bound"
    shapes = {tuple(value.shape) for value in keras.tree.flatten(node.arguments)}
    if len(shapes) > 1:
        return f"tensors of shapes {', '.join(map(str, sorted(shapes, key=str)))}; give them one"
    return None


for _handled, _quantize, _wrong in (
    ((keras.layers.Concatenate, *OPERATIONS["concatenate"]), _concatenate, _concatenate_problem),
    ((keras.layers.Maximum, *OPERATIONS["maximum"]), _maximum, _choice_problem),
    ((keras.layers.Minimum, *OPERATIONS["minimum"]), _minimum, _choice_problem),
):
    register_kind(Kind(_handled, _quantize, _wrong, merges=True, parts=_relu))
