"""Draws a graph of one operator from a seed, with grids that spread its results."""

import numpy as np

from tflite_export.ir.graph import (
    INTEGER_RANGES,
    IntegerGraph,
    NoOptions,
    Operator,
    Quantization,
    Tensor,
)

grid = Quantization.per_tensor


class Draw:
    """Draws one graph from a seed."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.graph = IntegerGraph()

    def integer(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def value(self, name, shape, scale=None, zero=None, dtype="int8"):
        low, high = INTEGER_RANGES[dtype]
        scale = (
            float(np.exp(self.rng.uniform(np.log(3e-3), np.log(0.5)))) if scale is None else scale
        )
        zero = self.integer(low, high) if zero is None else zero
        return self.graph.add_tensor(Tensor(name, shape, dtype, grid(scale, zero)))

    def constant(self, name, data, quantization, dtype):
        return self.graph.add_tensor(Tensor(name, data.shape, dtype, quantization, data))

    def done(self, kind, inputs, output, options=NoOptions(), sources=None):  # noqa: B008
        self.graph.operators.append(Operator(kind, tuple(inputs), (output,), options))
        self.graph.inputs = tuple(sources if sources is not None else inputs[:1])
        self.graph.outputs = (output,)
        return self.graph

    def scale_of(self, index):
        return float(self.graph.tensors[index].scale)

    def weighted(self, kind, source, shape, axis, options, out_shape, int4=False, bias=True):
        largest = 7 if int4 else 127
        channels = shape[axis]
        terms = int(np.prod(shape)) // channels
        scale = self.rng.uniform(0.3, 1.0, 1 if kind == "FULLY_CONNECTED" else channels)
        spread = 80 * 0.58 * largest * np.sqrt(terms)
        target = float(self.rng.uniform(0.2, 2.0)) * self.scale_of(source) * 0.6 * spread / 60
        weights = self.rng.integers(-largest, largest + 1, shape).astype(np.int8)
        weight_grid = Quantization.per_channel(scale, axis if scale.size > 1 else 0)
        inputs = [
            source,
            self.constant("w", weights, weight_grid, "int4" if int4 else "int8"),
        ]
        if bias:
            values = self.rng.integers(-int(spread), int(spread) + 1, channels).astype(np.int32)
            unit = np.float32(self.scale_of(source)) * weight_grid.scale
            inputs.append(self.constant("b", values, Quantization.per_channel(unit, 0), "int32"))
        zero = -128 if options.activation != "NONE" else None
        output = self.value("y", out_shape, target, zero)
        return self.done(kind, inputs, output, options)


def like(draw, source, shape, name="y"):
    """A result on the grid of a tensor."""
    tensor = draw.graph.tensors[source]
    return draw.value(name, shape, float(tensor.scale), tensor.zero_point)
