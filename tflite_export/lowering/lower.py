"""From the description of a trained model to an `IntegerGraph`.

One function per kind of computation, collected in `LOWERINGS`; nothing here knows a layer. The
kinds that layers derive for themselves register theirs with `lowering`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tfdq import description as described
from tfdq.description import Description, Input, Shape
from tfdq.grid import Grid
from tflite_export.ir.graph import (
    BATCH,
    Convolution,
    FullyConnected,
    IntegerGraph,
    NoOptions,
    Pooling,
    Quantization,
    Tensor,
    round_half_away,
)
from tflite_export.lowering.assemble import Affine, Assembler
from tflite_export.lowering.squeezing import median, regrid

INTERFACES = ("int8", "uint8", "float32")
WEIGHT_TYPES = ("int8", "int4")
_INT4_BITS = 4
_INT4_LARGEST = 7
_RELU6 = 6.0


@dataclass(frozen=True)
class Call:
    """One call of a description that is being lowered.

    Attributes:
        assembler: where operators go.
        described: the call.
        sources: tensors that the call reads.
        shape: shape of its result, the batch `BATCH`.
    """

    assembler: Assembler
    described: described.Call
    sources: list[int]
    shape: tuple[int, ...]

    @property
    def source(self) -> int:
        """The first tensor that the call reads."""
        return self.sources[0]

    @property
    def label(self) -> str:
        """Name of the layer."""
        return self.described.label

    @property
    def computation(self) -> Any:
        """What the call computes: one of the dataclasses of `tfdq.description`."""
        return self.described.computation

    @property
    def target(self) -> Grid:
        """Grid of the result, clamped by the fused activation.

        Raises:
            ValueError: the layer has no quantizer of its own.
        """
        grid = self.described.grid
        if grid is None:
            raise ValueError(
                f"layer {self.label!r} ({type(self.computation).__name__}) has no output quantizer"
            )
        return clamped_grid(grid, self.described.activation)


@dataclass(frozen=True)
class Lowered:
    """A model in integers, next to its description.

    Attributes:
        graph: the integers.
        description: the model that it is of.
        tensors: for each value of the description the tensor of the graph that holds it.
        biases: for each layer with weights, by name, the bias as the integers have it, float64
            ``(channels,)``.
        slack: for each tensor whose layer rounds more than once, by name, how many steps beyond one
            it can be off the trained layer.
    """

    graph: IntegerGraph
    description: Description
    tensors: tuple[int, ...]
    biases: dict[str, np.ndarray]
    slack: dict[str, int]


def clamped_grid(grid: Grid, activation: str) -> Grid:
    """A grid together with the integers that a fused activation leaves of it."""
    low, high = grid.qmin, grid.qmax
    if activation in ("relu", "relu6"):
        low = max(low, grid.zero_point)
    if activation == "relu6":
        high = min(
            high, grid.zero_point + round_half_away(np.float32(_RELU6) / np.float32(grid.scale))
        )
    return replace(grid, qmin=low, qmax=high)


def lower(
    description: Description,
    *,
    input_type: str = "int8",
    output_type: str | None = None,
    weights: str = "int8",
) -> Lowered:
    """The integers of a trained model.

    Args:
        description: the model (`tflite_export.lowering.trained.trained` has it of a model).
        input_type: what the caller of the exported file gives: ``"int8"``, ``"uint8"`` or
            ``"float32"``.
        output_type: what the caller gets; None for the same as ``input_type``.
        weights: ``"int8"``, or ``"int4"`` to pack the weights of convolutions and dense layers of
            at most 4 bits.

    Returns:
        The graph, with one label per operator naming the layer it comes from, and where each
        layer's result is.

    Raises:
        ValueError: a computation has no integer form, a call lacks its grid, an input has a size of
            None, or an argument is unknown.
    """
    output_type = output_type or input_type
    for name, value in (("input_type", input_type), ("output_type", output_type)):
        if value not in INTERFACES:
            raise ValueError(f"{name} is {value!r}; choose from {', '.join(INTERFACES)}")
    if weights not in WEIGHT_TYPES:
        raise ValueError(f"weights is {weights!r}; choose from {', '.join(WEIGHT_TYPES)}")
    _check_sizes(description)
    assembler = Assembler(description.name, int4=weights == "int4")
    ends = [_input(assembler, entry, input_type) for entry in description.inputs]
    values = [inner for _, inner in ends]
    for call in description.calls:
        integer_form = LOWERINGS.get(type(call.computation))
        if integer_form is None:
            raise ValueError(
                f"layer {call.label!r} ({type(call.computation).__name__}) has no integer form; "
                f"supported: {', '.join(sorted(kind.__name__ for kind in LOWERINGS))}"
            )
        sources = [values[i] for i in call.sources]
        values.append(integer_form(Call(assembler, call, sources, _open(call.shape))))
    graph = assembler.graph
    graph.inputs = tuple(outer for outer, _ in ends)
    graph.outputs = tuple(_output(assembler, values[i], output_type) for i in description.outputs)
    graph.signature_inputs = tuple(entry.name for entry in description.inputs)
    graph.signature_outputs = tuple(description.label(i) for i in description.outputs)
    results = zip(description.calls, values[len(ends) :], strict=True)
    slack = {
        graph.tensors[index].name: assembler.slack[call.label]
        for call, index in results
        if call.label in assembler.slack
    }
    return Lowered(graph, description, tuple(values), assembler.biases, slack)


def _check_sizes(description: Description) -> None:
    """Raise if an input has a size of None besides the batch: a file's sizes are fixed."""
    for entry in description.inputs:
        if None in entry.shape[1:]:
            raise ValueError(
                f"input {entry.name!r} has shape {tuple(entry.shape)}, but the sizes in a file are "
                "fixed: build the model again with an Input of numbers, copy the weights with "
                "set_weights(model.get_weights()), and quantize that; a trained quantized model "
                "hands its weights over in the same way"
            )


def _open(shape: Shape) -> tuple[int, ...]:
    return tuple(BATCH if size is None else int(size) for size in shape)


def _input(assembler: Assembler, entry: Input, kind: str) -> tuple[int, int]:
    """The tensor the caller fills and the int8 tensor behind it."""
    target, shape, name = clamped_grid(entry.grid, "linear"), _open(entry.shape), entry.label
    if kind == "int8":
        index = assembler.value(name, shape, target)
        return index, index
    grid = None
    if kind == "uint8":
        grid = Quantization.per_tensor(target.scale, target.zero_point + 128)
    outer = assembler.graph.add_tensor(Tensor(assembler.unique(name), shape, kind, grid))
    inner = assembler.value(f"{name}/quantized", shape, target)
    return outer, assembler.emit("QUANTIZE", (outer,), inner, NoOptions(), name)


def _output(assembler: Assembler, index: int, kind: str) -> int:
    """The tensor the caller reads."""
    if kind == "int8":
        return index
    tensor = assembler.graph.tensors[index]
    grid = None
    if kind == "uint8":
        grid = Quantization.per_tensor(float(tensor.scale), tensor.zero_point + 128)
    name = assembler.unique(f"{tensor.name}/{kind}")
    outer = assembler.graph.add_tensor(Tensor(name, tensor.shape, kind, grid))
    operator = "QUANTIZE" if kind == "uint8" else "DEQUANTIZE"
    return assembler.emit(operator, (index,), outer, NoOptions(), tensor.name)


def affine_of(call: Call, layout: Callable[[np.ndarray], np.ndarray], axis: int) -> Affine:
    """Kernel, bias and BatchNorm of a layer; a negative factor goes into the integers."""
    kernel: described.Kernel = call.computation.kernel
    weights = layout(kernel.integers.astype(np.int64))
    sign = np.where(kernel.multiplier < 0, -1, 1)
    along = [1] * weights.ndim
    along[axis] = -1
    scale = np.broadcast_to(kernel.scale.astype(np.float64), kernel.multiplier.shape)
    steps = np.abs(kernel.multiplier) * scale
    packed = call.assembler.int4 and kernel.bits <= _INT4_BITS
    largest = _INT4_LARGEST if packed else 127
    return Affine(weights * sign.reshape(along), steps, kernel.offset, largest)


def _geometry(
    computation: described.Conv2D | described.DepthwiseConv2D, multiplier: int = 1
) -> Convolution:
    return Convolution(
        padding=computation.padding.upper(),
        stride_w=computation.strides[1],
        stride_h=computation.strides[0],
        dilation_w=computation.dilation[1],
        dilation_h=computation.dilation[0],
        depth_multiplier=multiplier,
    )


def _conv_2d(call: Call) -> int:
    affine = affine_of(call, lambda kernel: np.transpose(kernel, (3, 0, 1, 2)), 0)
    if affine.weights.shape[3] != call.assembler.shape(call.source)[3]:
        # No kernels take grouped convolutions with packed weights.
        affine = replace(affine, largest=127)
    options = _geometry(call.computation)
    return call.assembler.weighted(
        "CONV_2D", call.source, affine, call.target, options, call.shape, call.label
    )


def _depthwise_conv_2d(call: Call) -> int:
    affine = affine_of(call, lambda kernel: kernel.reshape(1, *kernel.shape[:2], -1), 3)
    options = _geometry(call.computation, call.computation.kernel.integers.shape[3])
    return call.assembler.weighted(
        "DEPTHWISE_CONV_2D", call.source, affine, call.target, options, call.shape, call.label
    )


def _dense(call: Call) -> int:
    """One scale: FULLY_CONNECTED. One for each channel, or int4: a 1 x 1 convolution."""
    affine = affine_of(call, np.transpose, 0)
    units, inputs = affine.weights.shape
    one_scale = np.ptp(affine.scale) == 0.0
    assembler = call.assembler
    if one_scale and affine.largest == 127:
        return assembler.weighted(
            "FULLY_CONNECTED",
            call.source,
            affine,
            call.target,
            FullyConnected(),
            call.shape,
            call.label,
        )
    image = assembler.reshape(call.source, (BATCH, 1, 1, inputs), call.label)
    kernel = Affine(
        affine.weights.reshape(units, 1, 1, inputs), affine.scale, affine.offset, affine.largest
    )
    result = assembler.weighted(
        "CONV_2D", image, kernel, call.target, Convolution(), (BATCH, 1, 1, units), call.label
    )
    return assembler.reshape(result, call.shape, call.label)


def _rescale(call: Call) -> int:
    factor, offset = call.computation.factor, call.computation.offset
    return call.assembler.rescale(call.source, call.target, call.label, factor, offset)


def _activation(call: Call) -> int:
    return call.assembler.rescale(call.source, call.target, call.label)


def _add(call: Call) -> int:
    terms = list(zip(call.sources, call.computation.coefficients, strict=True))
    return call.assembler.add(terms, call.target, call.label)


def _concatenate(call: Call) -> int:
    own = call.described.grid
    target = call.assembler.grid(call.source) if own is None else call.target
    return call.assembler.concatenate(call.sources, call.computation.axis, target, call.label)


def _pooling(computation: described.MaxPool2D | described.AveragePool2D) -> Pooling:
    return Pooling(
        computation.padding.upper(),
        computation.strides[1],
        computation.strides[0],
        computation.pool_size[1],
        computation.pool_size[0],
    )


def _whole_image(call: Call) -> Pooling:
    _, height, width, _ = call.assembler.shape(call.source)
    return Pooling("VALID", 1, 1, width, height)


def _max_pooling(call: Call) -> int:
    return call.assembler.max_pool(call.source, _pooling(call.computation), call.label)


def _global_max_pooling(call: Call) -> int:
    pooled = call.assembler.max_pool(call.source, _whole_image(call), call.label)
    return call.assembler.reshape(pooled, call.shape, call.label)


def _average_pooling(call: Call) -> int:
    pooling = _pooling(call.computation)
    window = (pooling.filter_h, pooling.filter_w)
    if window == call.assembler.shape(call.source)[1:3] and (
        pooling.padding == "VALID" or call.shape[1:3] == (1, 1)
    ):
        return _global_average_pooling(call)
    return call.assembler.average_pool(call.source, pooling, call.target, call.label)


def _global_average_pooling(call: Call) -> int:
    pooled = call.assembler.mean(call.source, call.target, call.label)
    return call.assembler.reshape(pooled, call.shape, call.label)


def _requantize(call: Call) -> int:
    return regrid(call.assembler, call.source, call.target, call.label, call.computation)


def _median(call: Call) -> int:
    return median(call.assembler, call.source, call.computation.size, call.label)


def _reshape(call: Call) -> int:
    return call.assembler.reshape(call.source, call.shape, call.label)


def _zero_padding(call: Call) -> int:
    return call.assembler.pad(call.source, call.computation.amounts, call.label)


def _identity(call: Call) -> int:
    return call.source


def _softmax(call: Call) -> int:
    return call.assembler.softmax(call.source, call.label)


LOWERINGS: dict[type, Callable[[Call], int]] = {
    described.Activation: _activation,
    described.Add: _add,
    described.Affine: _rescale,
    described.AveragePool2D: _average_pooling,
    described.Concatenate: _concatenate,
    described.Conv2D: _conv_2d,
    described.Dense: _dense,
    described.DepthwiseConv2D: _depthwise_conv_2d,
    described.GlobalAveragePool2D: _global_average_pooling,
    described.GlobalMaxPool2D: _global_max_pooling,
    described.Identity: _identity,
    described.MaxPool2D: _max_pooling,
    described.Median2D: _median,
    described.Requantize: _requantize,
    described.Reshape: _reshape,
    described.Softmax: _softmax,
    described.ZeroPad2D: _zero_padding,
}
"""The integer form of every computation, by its class."""


def lowering(
    kind: type[described.Computation],
) -> Callable[[Callable[[Call], int]], Callable[[Call], int]]:
    """Register the integer form of a computation: a decorator.

    Args:
        kind: a class derived from `tfdq.description.Computation`.

    Returns:
        A decorator of a function that emits operators with ``call.assembler`` and returns the index
        of the tensor with the result.

    Example:
        >>> @lowering(Enlarge)
        ... def lower_enlarge(call):
        ...     return call.assembler.emit("RESIZE_NEAREST_NEIGHBOR", ...)
    """

    def register(function: Callable[[Call], int]) -> Callable[[Call], int]:
        LOWERINGS[kind] = function
        return function

    return register
