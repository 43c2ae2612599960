"""Tiny integer graphs with random weights, written by hand, for exhaustive checks."""

import numpy as np

from tflite_export.ir.graph import (
    Concatenation,
    Convolution,
    Elementwise,
    FullyConnected,
    IntegerGraph,
    NoOptions,
    Operator,
    Pooling,
    Quantization,
    Reduction,
    Softmax,
    Tensor,
)
from tflite_export.lowering.assemble import Assembler
from tflite_export.lowering.squeezing import median

INPUT_SCALE = 1 / 255


class GraphBuilder:
    """Append operators with random weights, one after the other."""

    def __init__(self, shape: tuple[int, ...], seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.graph = IntegerGraph()
        grid = Quantization.per_tensor(INPUT_SCALE, -128)
        self.at = self.graph.add_tensor(Tensor("input", (-1, *shape), "int8", grid))
        self.graph.inputs = (self.at,)

    def _constant(self, data: np.ndarray, dtype: str, grid: Quantization | None) -> int:
        name = f"constant{len(self.graph.tensors)}"
        return self.graph.add_tensor(Tensor(name, data.shape, dtype, grid, data))

    def _result(self, kind, operands, options, shape, grid: Quantization | None = None) -> int:
        grid = grid or self.graph.tensors[self.at].quantization
        name = f"value{len(self.graph.tensors)}"
        output = self.graph.add_tensor(Tensor(name, (-1, *shape), "int8", grid))
        self.graph.operators.append(Operator(kind, tuple(operands), (output,), options))
        self.graph.outputs = (output,)
        self.at = output
        return output

    def grid(self, scale: float) -> Quantization:
        return Quantization.per_tensor(scale, int(self.rng.integers(-20, 20)))

    def weights(self, shape: tuple[int, ...], axis: int, per_channel: bool = True) -> int:
        data = self.rng.integers(-127, 128, shape).astype(np.int8)
        steps = self.rng.uniform(0.004, 0.01, shape[axis] if per_channel else 1)
        return self._constant(data, "int8", Quantization.per_channel(steps, axis))

    def bias(self, size: int, kernel: int) -> int:
        data = self.rng.integers(-3000, 3000, size).astype(np.int32)
        steps = self.graph.tensors[kernel].quantization.scale * self.graph.tensors[self.at].scale
        return self._constant(data, "int32", Quantization.per_channel(steps, 0))

    def conv(self, filters: int, stride: int = 1, activation: str = "RELU6") -> "GraphBuilder":
        height, width, channels = self.graph.tensors[self.at].shape[1:]
        kernel = self.weights((filters, 3, 3, channels), 0)
        bias = self.bias(filters, kernel)
        options = Convolution("SAME", stride, stride, activation)
        shape = (-(-height // stride), -(-width // stride), filters)
        grid = Quantization.per_tensor(6 / 255, -128)
        if activation == "NONE":
            grid = self.grid(0.05)
        self._result("CONV_2D", (self.at, kernel, bias), options, shape, grid)
        return self

    def depthwise(self) -> "GraphBuilder":
        shape = self.graph.tensors[self.at].shape[1:]
        kernel = self.weights((1, 2, 2, shape[2]), 3)
        bias = self.bias(shape[2], kernel)
        options = Convolution("SAME", 1, 1, "NONE")
        self._result("DEPTHWISE_CONV_2D", (self.at, kernel, bias), options, shape, self.grid(0.06))
        return self

    def add(self, other: int) -> "GraphBuilder":
        shape = self.graph.tensors[self.at].shape[1:]
        self._result("ADD", (self.at, other), Elementwise("NONE"), shape, self.grid(0.11))
        return self

    def concatenate(self, other: int) -> "GraphBuilder":
        height, width, channels = self.graph.tensors[self.at].shape[1:]
        more = self.graph.tensors[other].shape[3]
        shape = (height, width, channels + more)
        self._result("CONCATENATION", (self.at, other), Concatenation(3), shape)
        return self

    def pool(self, kind: str) -> "GraphBuilder":
        height, width, channels = self.graph.tensors[self.at].shape[1:]
        options = Pooling("SAME", 2, 2, 2, 2)
        shape = (-(-height // 2), -(-width // 2), channels)
        self._result(kind, (self.at,), options, shape)
        return self

    def mean(self) -> "GraphBuilder":
        channels = self.graph.tensors[self.at].shape[3]
        axes = self._constant(np.array([1, 2], np.int32), "int32", None)
        self._result("MEAN", (self.at, axes), Reduction(), (channels,), self.grid(0.013))
        return self

    def median(self, size: int) -> "GraphBuilder":
        assembler = Assembler("squeezed")
        assembler.graph = self.graph
        assembler.in_use[self.at] = (-128, 127)
        self.at = median(assembler, self.at, size, "median")
        return self

    def flatten(self) -> "GraphBuilder":
        size = int(np.prod(self.graph.tensors[self.at].shape[1:]))
        target = self._constant(np.array([-1, size], np.int32), "int32", None)
        self._result("RESHAPE", (self.at, target), NoOptions(), (size,))
        return self

    def dense(self, classes: int, scale: float = 0.02) -> "GraphBuilder":
        size = self.graph.tensors[self.at].shape[1]
        kernel = self.weights((classes, size), 0, per_channel=False)
        bias = self.bias(classes, kernel)
        options = FullyConnected("NONE")
        self._result(
            "FULLY_CONNECTED", (self.at, kernel, bias), options, (classes,), self.grid(scale)
        )
        return self

    def softmax(self) -> "GraphBuilder":
        shape = self.graph.tensors[self.at].shape[1:]
        grid = Quantization.per_tensor(1 / 256, -128)
        self._result("SOFTMAX", (self.at,), Softmax(1.0), shape, grid)
        return self


def plain(seed: int, scale: float = 0.02) -> IntegerGraph:
    return GraphBuilder((2, 2, 1), seed).conv(3).flatten().dense(3, scale).graph


def residual(seed: int) -> IntegerGraph:
    builder = GraphBuilder((2, 2, 1), seed).conv(2)
    stem = builder.at
    builder.conv(2, activation="NONE").add(stem).depthwise()
    return builder.pool("MAX_POOL_2D").flatten().dense(3).graph


def branched(seed: int) -> IntegerGraph:
    builder = GraphBuilder((2, 2, 1), seed).conv(2)
    stem = builder.at
    builder.conv(2).concatenate(stem).pool("AVERAGE_POOL_2D").flatten().dense(3, 0.05)
    return builder.softmax().graph


def averaged(seed: int) -> IntegerGraph:
    return GraphBuilder((2, 2, 1), seed).conv(3).mean().dense(3).graph


def squeezed(seed: int) -> IntegerGraph:
    return GraphBuilder((2, 2, 1), seed).median(2).conv(3).flatten().dense(3).graph


NETWORKS = {
    "plain": plain,
    "residual": residual,
    "branched": branched,
    "averaged": averaged,
    "squeezed": squeezed,
}
