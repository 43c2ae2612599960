"""From a trained Keras model to an `IntegerGraph`; alone in knowing `tfdq.quantization`.

One function per kind of layer, collected in `LOWERINGS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tf_keras

from tfdq.quantization import (
    BitDepthSqueeze,
    ConvexCombination,
    FusedAdd,
    FusedBatchNormalization,
    FusedConv2D,
    FusedDense,
    FusedDepthwiseConv2D,
    FusedReLU,
    Graph,
    Grid,
    InputQuantizer,
    MedianSqueeze,
    QuantizeWrapper,
    read_graph,
)
from tflite_export.assemble import Affine, Assembler
from tflite_export.graph import (
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
from tflite_export.grids import Target
from tflite_export.squeezing import median, regrid

L = tf_keras.layers
INTERFACES = ("int8", "uint8", "float32")
WEIGHT_TYPES = ("int8", "int4")
_INT4_BITS = 4
_INT4_LARGEST = 7
_RELU6 = 6.0


@dataclass(frozen=True)
class Call:
    """One call of a layer that is being lowered.

    Attributes:
        assembler: where operators go.
        layer: the layer inside the quantize wrapper.
        wrapper: the wrapper; the layer itself where a squeezer is in front of a quantized model.
        sources: tensors that the call reads.
        shape: shape of its result, the batch `BATCH`.
    """

    assembler: Assembler
    layer: Any
    wrapper: Any
    sources: list[int]
    shape: tuple[int, ...]

    @property
    def source(self) -> int:
        """The only tensor that the call reads."""
        return self.sources[0]

    @property
    def label(self) -> str:
        """Name of the layer."""
        return str(self.layer.name)

    @property
    def target(self) -> Target:
        """Grid of the result, clamped by the fused activation.

        Raises:
            ValueError: the layer has no quantizer of its own, or its range has seen no data.
        """
        grid = self.wrapper.output_grid()
        if grid is None:
            raise ValueError(
                f"layer {self.label!r} ({type(self.layer).__name__}) has no output quantizer"
            )
        return target_of(grid, getattr(self.layer, "fused_activation", "linear"))


@dataclass(frozen=True)
class Lowered:
    """A model in integers, next to the model.

    Attributes:
        graph: the integers.
        nodes: the calls of the Keras model.
        tensors: for each call by its position, the tensor of the graph that holds its result.
        biases: for each layer with weights, by name, the bias as the integers have it, float64
            ``(channels,)``.
        slack: for each tensor whose layer rounds more than once, by name, how many steps beyond one
            it can be off the trained layer.
    """

    graph: IntegerGraph
    nodes: Graph
    tensors: dict[int, int]
    biases: dict[str, np.ndarray]
    slack: dict[str, int]


def target_of(grid: Grid, activation: str) -> Target:
    """A grid together with the integers that a fused activation leaves of it."""
    low, high = grid.qmin, grid.qmax
    if activation in ("relu", "relu6"):
        low = max(low, grid.zero_point)
    if activation == "relu6":
        high = min(
            high, grid.zero_point + round_half_away(np.float32(_RELU6) / np.float32(grid.scale))
        )
    return Target(grid.scale, grid.zero_point, low, high)


def lower(
    model: tf_keras.Model,
    *,
    input_type: str = "int8",
    output_type: str | None = None,
    weights: str = "int8",
) -> Lowered:
    """The integers of a trained model made by ``tfdq.quantize_model``.

    Args:
        model: the model; every range must have seen data.
        input_type: what the caller of the exported file gives: ``"int8"``, ``"uint8"`` or
            ``"float32"``.
        output_type: what the caller gets; None for the same as ``input_type``.
        weights: ``"int8"``, or ``"int4"`` to pack the weights of convolutions and dense layers of
            at most 4 bits.

    Returns:
        The graph, with one label per operator naming the layer it comes from, and where each
        layer's result is.

    Raises:
        TypeError: it is no tf_keras model.
        ValueError: it is not a quantized model, a layer is in float or can't be exported, a range
            has seen no data, or an argument is unknown.
    """
    output_type = output_type or input_type
    for name, value in (("input_type", input_type), ("output_type", output_type)):
        if value not in INTERFACES:
            raise ValueError(f"{name} is {value!r}; choose from {', '.join(INTERFACES)}")
    if weights not in WEIGHT_TYPES:
        raise ValueError(f"weights is {weights!r}; choose from {', '.join(WEIGHT_TYPES)}")
    if not isinstance(model, tf_keras.Model):
        raise TypeError(
            f"expected a tf_keras model of tfdq.quantize_model, got {type(model).__name__}"
        )
    nodes = read_graph(model)
    if not any(isinstance(node.layer, InputQuantizer) for node in nodes.nodes):
        raise ValueError(
            f"model {model.name!r} is not quantized; make it quantization-aware first: "
            "tfdq.quantize_model(model)"
        )
    assembler = Assembler(model.name, int4=weights == "int4")
    produced: dict[int, int] = {}
    inputs: dict[int, int] = {}
    for node in nodes.nodes:
        shape = tuple(BATCH if size is None else int(size) for size in node.shape)
        if not node.inputs:
            inputs[node.index] = -1
            continue
        if isinstance(node.layer, InputQuantizer) and node.inputs[0] not in produced:
            index = _input(assembler, node.layer, shape, input_type)
            inputs[node.inputs[0]], produced[node.index] = index
            continue
        missing = [i for i in node.inputs if i not in produced]
        if not missing and isinstance(node.layer, (*_SQUEEZERS, InputQuantizer)):
            call = Call(assembler, node.layer, node.layer, [produced[node.inputs[0]]], shape)
            produced[node.index] = LOWERINGS[type(node.layer)](call)
            continue
        if missing and isinstance(node.layer, _SQUEEZERS):
            raise ValueError(
                f"squeezer {node.layer.name!r} takes images that are not quantized; put it in "
                "front of a quantized model with tfdq.robustness.squeeze, which puts the model's "
                "input quantizer before it, or squeeze the float model and quantize that"
            )
        if missing or not isinstance(node.layer, QuantizeWrapper):
            raise ValueError(
                f"layer {node.layer.name!r} ({type(node.layer).__name__}) is not quantized by "
                "tfdq, so it has no "
                "integer form; quantize it too (no skip=, no QuantizeConfig of another kind), or "
                "remove it"
            )
        lowering = LOWERINGS.get(type(node.layer.layer))
        if lowering is None:
            raise ValueError(
                f"layer {node.layer.layer.name!r} ({type(node.layer.layer).__name__}) has no "
                "integer form; "
                f"supported: {', '.join(sorted(kind.__name__ for kind in LOWERINGS))}"
            )
        sources = [produced[i] for i in node.inputs]
        call = Call(assembler, node.layer.layer, node.layer, sources, shape)
        produced[node.index] = lowering(call)
    graph = assembler.graph
    graph.inputs = tuple(inputs[i] for i in nodes.inputs)
    graph.outputs = tuple(_output(assembler, produced[i], output_type) for i in nodes.outputs)
    graph.signature_inputs = tuple(nodes.nodes[i].layer.name for i in nodes.inputs)
    graph.signature_outputs = tuple(
        getattr(nodes.nodes[i].layer, "layer", nodes.nodes[i].layer).name for i in nodes.outputs
    )
    slack = {
        graph.tensors[produced[node.index]].name: assembler.slack[node.layer.layer.name]
        for node in nodes.nodes
        if isinstance(node.layer, QuantizeWrapper) and node.layer.layer.name in assembler.slack
    }
    return Lowered(graph, nodes, produced, assembler.biases, slack)


def _input(
    assembler: Assembler, layer: InputQuantizer, shape: tuple[int, ...], kind: str
) -> tuple[int, int]:
    """The tensor the caller fills and the int8 tensor behind it."""
    target = target_of(layer.output_grid(), "linear")
    name = layer.name.removeprefix("quant_")
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


def _affine(call: Call, layout: Callable[[np.ndarray], np.ndarray], axis: int) -> Affine:
    """Kernel, bias and BatchNorm of a layer; a negative factor goes into the integers."""
    integers, scale = call.wrapper.quantized_kernel()
    multiplier, offset = call.layer.folded()
    weights = layout(integers.astype(np.int64))
    sign = np.where(multiplier < 0, -1, 1)
    along = [1] * weights.ndim
    along[axis] = -1
    steps = np.abs(multiplier) * np.broadcast_to(scale.astype(np.float64), multiplier.shape)
    bits = call.wrapper.bits[0] or 8
    packed = call.assembler.int4 and bits <= _INT4_BITS
    largest = _INT4_LARGEST if packed else 127
    return Affine(weights * sign.reshape(along), steps, offset, largest)


def _geometry(layer: Any, multiplier: int = 1) -> Convolution:
    return Convolution(
        padding=layer.padding.upper(),
        stride_w=layer.strides[1],
        stride_h=layer.strides[0],
        dilation_w=layer.dilation_rate[1],
        dilation_h=layer.dilation_rate[0],
        depth_multiplier=multiplier,
    )


def _conv_2d(call: Call) -> int:
    affine = _affine(call, lambda kernel: np.transpose(kernel, (3, 0, 1, 2)), 0)
    return call.assembler.weighted(
        "CONV_2D", call.source, affine, call.target, _geometry(call.layer), call.shape, call.label
    )


def _depthwise_conv_2d(call: Call) -> int:
    affine = _affine(call, lambda kernel: kernel.reshape(1, *kernel.shape[:2], -1), 3)
    options = _geometry(call.layer, call.layer.depth_multiplier)
    return call.assembler.weighted(
        "DEPTHWISE_CONV_2D", call.source, affine, call.target, options, call.shape, call.label
    )


def _dense(call: Call) -> int:
    """One scale: FULLY_CONNECTED. One for each channel, or int4: a 1 x 1 convolution."""
    affine = _affine(call, np.transpose, 0)
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


def _batch_normalization(call: Call) -> int:
    factor, offset = call.layer.folded()
    return call.assembler.rescale(call.source, call.target, call.label, factor, offset)


def _relu(call: Call) -> int:
    return call.assembler.rescale(call.source, call.target, call.label)


def _rescaling(call: Call) -> int:
    layer = call.layer
    return call.assembler.rescale(
        call.source, call.target, call.label, np.asarray(layer.scale), np.asarray(layer.offset)
    )


def _add(call: Call) -> int:
    return call.assembler.add([(source, 1.0) for source in call.sources], call.target, call.label)


def _convex_combination(call: Call) -> int:
    coefficients = [float(value) for value in call.layer.coefficients()]
    terms = list(zip(call.sources, coefficients, strict=True))
    return call.assembler.add(terms, call.target, call.label)


def _concatenate(call: Call) -> int:
    axis = call.layer.axis % len(call.shape)
    own = call.wrapper.output_grid()
    target = call.assembler.grid(call.source) if own is None else call.target
    return call.assembler.concatenate(call.sources, axis, target, call.label)


def _pooling(layer: Any) -> Pooling:
    return Pooling(
        layer.padding.upper(),
        layer.strides[1],
        layer.strides[0],
        layer.pool_size[1],
        layer.pool_size[0],
    )


def _whole_image(call: Call) -> Pooling:
    _, height, width, _ = call.assembler.shape(call.source)
    return Pooling("VALID", 1, 1, width, height)


def _max_pooling(call: Call) -> int:
    return call.assembler.max_pool(call.source, _pooling(call.layer), call.label)


def _global_max_pooling(call: Call) -> int:
    pooled = call.assembler.max_pool(call.source, _whole_image(call), call.label)
    return call.assembler.reshape(pooled, call.shape, call.label)


def _average_pooling(call: Call) -> int:
    if tuple(call.layer.pool_size) == call.assembler.shape(call.source)[1:3] and (
        call.layer.padding == "valid" or call.shape[1:3] == (1, 1)
    ):
        return _global_average_pooling(call)
    return call.assembler.average_pool(call.source, _pooling(call.layer), call.target, call.label)


def _global_average_pooling(call: Call) -> int:
    pooled = call.assembler.mean(call.source, call.target, call.label)
    return call.assembler.reshape(pooled, call.shape, call.label)


def _bit_depth(call: Call) -> int:
    target = target_of(call.layer.grid(), "linear")
    return regrid(call.assembler, call.source, target, call.label, _trained(call.wrapper))


def _second_input(call: Call) -> int:
    """The input quantizer of a quantized model that squeezers are in front of."""
    target = target_of(call.layer.output_grid(), "linear")
    return regrid(call.assembler, call.source, target, call.label, _trained(call.layer))


def _trained(layer: Any) -> Callable[[np.ndarray], np.ndarray]:
    return lambda reals: np.asarray(layer(reals))


def _median(call: Call) -> int:
    return median(call.assembler, call.source, call.layer.size, call.label)


def _reshape(call: Call) -> int:
    return call.assembler.reshape(call.source, call.shape, call.label)


def _zero_padding(call: Call) -> int:
    return call.assembler.pad(call.source, call.layer.padding, call.label)


def _dropout(call: Call) -> int:
    return call.source


def _softmax(call: Call) -> int:
    return call.assembler.softmax(call.source, call.label)


_SQUEEZERS = (BitDepthSqueeze, MedianSqueeze)

LOWERINGS: dict[type, Callable[[Call], int]] = {
    FusedConv2D: _conv_2d,
    FusedDepthwiseConv2D: _depthwise_conv_2d,
    FusedDense: _dense,
    FusedBatchNormalization: _batch_normalization,
    FusedReLU: _relu,
    FusedAdd: _add,
    ConvexCombination: _convex_combination,
    BitDepthSqueeze: _bit_depth,
    MedianSqueeze: _median,
    InputQuantizer: _second_input,
    L.Rescaling: _rescaling,
    L.Concatenate: _concatenate,
    L.MaxPooling2D: _max_pooling,
    L.GlobalMaxPooling2D: _global_max_pooling,
    L.AveragePooling2D: _average_pooling,
    L.GlobalAveragePooling2D: _global_average_pooling,
    L.Flatten: _reshape,
    L.Reshape: _reshape,
    L.ZeroPadding2D: _zero_padding,
    L.Dropout: _dropout,
    L.Softmax: _softmax,
}
"""The integer form of every layer that ``tfdq.quantize_model`` makes."""
