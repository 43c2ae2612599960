"""The quantizer of a model's input."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np
from keras import ops

from tfdq.description import Shape
from tfdq.grid import Grid
from tfdq.keras3.layer_kinds.base import Flow, Phase, QuantizedLayer, register
from tfdq.keras3.ranges import OutputRange, RangeSettings
from tfdq.keras3.rounding import between, round_through
from tfdq.mistakes import WrongTypeError


@register
class InputQuantizer(QuantizedLayer):
    """Round real inputs to integers: ``clip(rint(x * (1 / step)))``, ties to even.

    Args:
        output: `RangeSettings` of the input.
    """

    rising = True

    def __init__(self, output: RangeSettings | dict[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.output_settings = RangeSettings.of(output)

    def build(self, input_shape: Any) -> None:
        """Create the range and the deployed constants."""
        self.range = OutputRange(self, self.output_settings)
        self.inverse = self.add_constant("inverse_step", ())
        self.sealed = self.add_constant("sealed", ())
        self.sealed_result = self.add_constant("step", ())
        self.sealed_bounds = self.add_constant("bounds", (2,))

    def mark_stale(self) -> None:
        """Say that the range has gone on, and the constants have not."""
        self.sealed.assign(ops.zeros(()))

    def train(self, flow: Any, phase: Phase) -> Flow:
        """Return the rounded inputs; the range follows them."""
        values = ops.cast(flow, "float32")
        steps = self.range.observe(ops.min(values), ops.max(values), phase.ranges)
        return round_through(
            between(values * (1.0 / steps.step), steps.low, steps.high)
        ), steps.step

    def infer(self, flow: Any) -> Flow:
        """Return the rounded inputs."""
        values = ops.cast(flow, "float32") * self.inverse
        bounds = ops.convert_to_tensor(self.sealed_bounds)
        return round_through(between(values, bounds[0], bounds[1])), self.deployed_step()

    def result_shape(self, shapes: Any) -> Shape:
        """Return the shape of the input."""
        return tuple(shapes)

    def computation(self) -> NoReturn:
        """Refuse: the description holds the grid of an input, and no computation."""
        raise WrongTypeError(f"{self.name!r} quantizes an input, which is described by its grid")

    def grid(self) -> Grid:
        """Return the grid of the input."""
        return self.range.grid()

    def seal_input(self, grid: Grid) -> None:
        """Take the deployed constants from the input's grid."""
        scale = np.float32(grid.scale)
        self.inverse.assign(np.float32(1.0) / scale)
        self.sealed_result.assign(scale)
        ends = (grid.qmin - grid.zero_point, grid.qmax - grid.zero_point)
        self.sealed_bounds.assign(np.asarray(ends, np.float32))
        self.sealed.assign(np.float32(1.0))

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {**super().get_config(), "output": self.output_settings.config()}
