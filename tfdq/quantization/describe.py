"""The description of a quantized tf_keras model: what each of its layers computes in integers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from tfdq.description import (
    Activation,
    Add,
    Affine,
    AveragePool2D,
    Call,
    Computation,
    Concatenate,
    Conv2D,
    Dense,
    DepthwiseConv2D,
    Description,
    GlobalAveragePool2D,
    GlobalMaxPool2D,
    Identity,
    Input,
    Kernel,
    MaxPool2D,
    Median2D,
    Requantize,
    Reshape,
    Softmax,
    ZeroPad2D,
)
from tfdq.grid import Grid
from tfdq.mistakes import WrongTypeError
from tfdq.quantization.batch_statistics import estimating_statistics, norms_that_follow
from tfdq.quantization.graph import Graph, Node, read_graph
from tfdq.quantization.layers import (
    ConvexCombination,
    FusedAdd,
    FusedBatchNormalization,
    FusedConv2D,
    FusedDense,
    FusedDepthwiseConv2D,
    FusedReLU,
)
from tfdq.quantization.squeezing import BitDepthSqueeze, MedianSqueeze
from tfdq.quantization.wrapper import InputQuantizer, QuantizeWrapper

L = tf_keras.layers
_SQUEEZERS = (BitDepthSqueeze, MedianSqueeze)


@dataclass(frozen=True)
class LayerCall:
    """A layer that is being described.

    Attributes:
        layer: the layer inside the quantize wrapper.
        wrapper: the wrapper; the layer itself where a squeezer is in front of a quantized model.
        rank: number of axes of the result, the batch axis counted.
        sources: how many tensors the call takes.
        grid: grid of the first of them.
    """

    layer: Any
    wrapper: Any
    rank: int
    sources: int
    grid: Grid


class TrainedKerasModel:
    """A quantized tf_keras model as a `tfdq.description.TrainedModel`.

    Args:
        model: the model; every range must have seen data.

    Raises:
        TypeError: it is no tf_keras model.
        ValueError: it is not a quantized model, or a layer is in float or has no description.
    """

    def __init__(self, model: tf_keras.Model) -> None:
        if not isinstance(model, tf_keras.Model):
            raise WrongTypeError(
                f"expected a quantized model, as tfdq.quantize_model makes it, got "
                f"{type(model).__module__}.{type(model).__name__}; a float Keras 3 model "
                "is quantized by tfdq.quantize_model, or becomes a tf_keras model by "
                "tfdq.from_keras3"
            )
        self.model = model
        self._graph = read_graph(model)
        if not any(isinstance(node.layer, InputQuantizer) for node in self._graph.nodes):
            raise ValueError(
                f"model {model.name!r} is not quantized; make it quantization-aware first: "
                "tfdq.quantize_model(model)"
            )
        self._inputs, self._calls = _split(self._graph)
        ordered = [*self._inputs, *self._calls]
        self._values = {node.index: value for value, node in enumerate(ordered)}

    @property
    def description(self) -> Description:
        """The model as it is now.

        Raises:
            ValueError: a range has seen no data, or a layer's settings have no integer form.
        """
        inputs = tuple(
            Input(
                self._graph.nodes[node.inputs[0]].layer.name,
                node.layer.name.removeprefix("quant_"),
                node.shape,
                node.layer.output_grid(),
            )
            for node in self._inputs
        )
        grids = [entry.grid for entry in inputs]
        calls = []
        for node in self._calls:
            sources = tuple(self._values[i] for i in node.inputs)
            call = _call(node, sources, grids[sources[0]])
            calls.append(call)
            grids.append(call.grid or grids[sources[0]])
        outputs = tuple(self._values[i] for i in self._graph.outputs)
        return Description(self.model.name, inputs, tuple(calls), outputs)

    def outputs(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the model's outputs at inference, see `tfdq.description.TrainedModel`."""
        result = self.model(inputs[0] if len(inputs) == 1 else list(inputs), training=False)
        return [np.asarray(part) for part in tf.nest.flatten(result)]

    def outputs_with_statistics_of(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray] | None:
        """Return outputs with a batch's own statistics, see `tfdq.description.TrainedModel`."""
        norms = norms_that_follow(self.model)
        if not norms:
            return None
        kept = [norm.get_weights() for norm in norms]
        try:
            with estimating_statistics(self.model) as take:
                results = self.outputs(inputs)
                take(len(inputs[0]))
        finally:
            for norm, weights in zip(norms, kept, strict=True):
                norm.set_weights(weights)
        return results

    def infer(self, value: int, sources: Sequence[np.ndarray]) -> np.ndarray:
        """Return what the layer of a value makes of its sources at inference."""
        layer = [*self._inputs, *self._calls][value].layer
        return np.asarray(layer(sources[0] if len(sources) == 1 else list(sources), training=False))

    def shift_offsets(self, stored: Mapping[str, np.ndarray]) -> float:
        """Set biases or BatchNorms' beta to what a file stores, in place."""
        largest = 0.0
        for node in self._calls:
            layer: Any = getattr(node.layer, "layer", None)
            offset = None if layer is None else stored.get(layer.name)
            if offset is None or not hasattr(layer, "folded") or not _has_bias(layer):
                continue
            multiplier, present = layer.folded()
            change = offset - present
            if not change.any():
                continue
            largest = max(largest, float(np.abs(change).max()))
            _shift(layer, change, multiplier)
        return largest


def _split(graph: Graph) -> tuple[list[Node], list[Node]]:
    """Return the input quantizers in the order of the inputs, and the calls behind them.

    Raises:
        ValueError: a call is in float, or its layer is none that is described.
    """
    quantizers: dict[int, Node] = {}
    known: set[int] = set()
    calls = []
    for node in graph.nodes:
        if not node.inputs:
            continue
        source = node.inputs[0]
        if isinstance(node.layer, InputQuantizer) and source in graph.inputs:
            if source in quantizers:
                raise ValueError(
                    f"input {graph.nodes[source].layer.name!r} goes to two input quantizers, "
                    f"{quantizers[source].layer.name!r} and {node.layer.name!r}; give both parts "
                    "of the model the output of one"
                )
            quantizers[source] = node
        else:
            _check(node, known.issuperset(node.inputs))
            calls.append(node)
        known.add(node.index)
    missing = [graph.nodes[i].layer.name for i in graph.inputs if i not in quantizers]
    if missing:
        raise ValueError(f"input {missing[0]!r} has no quantizer and is used by no layer")
    return [quantizers[i] for i in graph.inputs], calls


def _check(node: Node, is_quantized: bool) -> None:
    """Check that a call takes integers and has a description.

    Raises:
        ValueError: it does not.
    """
    layer = node.layer
    if is_quantized and isinstance(layer, (*_SQUEEZERS, InputQuantizer)):
        return
    if isinstance(layer, _SQUEEZERS):
        raise ValueError(
            f"squeezer {layer.name!r} takes images that are not quantized; put it in "
            "front of a quantized model with tfdq.robustness.squeeze, which puts the model's "
            "input quantizer before it, or squeeze the float model and quantize that"
        )
    if not is_quantized or not isinstance(layer, QuantizeWrapper):
        raise ValueError(
            f"layer {layer.name!r} ({type(layer).__name__}) is not quantized by tfdq, so it has no "
            "integer form; quantize it too (no skip=, no QuantizeConfig of another kind), or "
            "remove it"
        )
    if type(layer.layer) not in DESCRIPTIONS:
        raise ValueError(
            f"layer {layer.layer.name!r} ({type(layer.layer).__name__}) has no integer form; "
            f"supported: {', '.join(sorted(kind.__name__ for kind in DESCRIPTIONS))}"
        )


def _call(node: Node, sources: tuple[int, ...], source_grid: Grid) -> Call:
    """Return the description of one call."""
    wrapper = node.layer
    trained = isinstance(wrapper, QuantizeWrapper)
    layer = wrapper.layer if trained else wrapper
    layer_call = LayerCall(layer, wrapper, len(node.shape), len(sources), source_grid)
    computation = DESCRIPTIONS[type(layer)](layer_call)
    if isinstance(layer, BitDepthSqueeze):
        grid = layer.grid()
    elif isinstance(layer, MedianSqueeze):
        grid = None
    else:
        grid = wrapper.output_grid()
    penalty = getattr(getattr(layer, "penalty", None), "beta", None)
    return Call(
        layer.name,
        computation,
        sources,
        node.shape,
        grid,
        getattr(layer, "fused_activation", "linear"),
        wrapper.bits if trained else None,
        None if penalty is None else float(penalty),
    )


def _kernel(layer_call: LayerCall) -> Kernel:
    integers, scale = layer_call.wrapper.quantized_kernel()
    multiplier, offset = layer_call.layer.folded()
    return Kernel(integers, scale, multiplier, offset, layer_call.wrapper.bits[0])


def _conv_2d(layer_call: LayerCall) -> Computation:
    layer = layer_call.layer
    return Conv2D(_kernel(layer_call), layer.padding, layer.strides, layer.dilation_rate)


def _depthwise_conv_2d(layer_call: LayerCall) -> Computation:
    layer = layer_call.layer
    return DepthwiseConv2D(_kernel(layer_call), layer.padding, layer.strides, layer.dilation_rate)


def _dense(layer_call: LayerCall) -> Computation:
    return Dense(_kernel(layer_call))


def _batch_normalization(layer_call: LayerCall) -> Computation:
    return Affine(*layer_call.layer.folded())


def _relu(layer_call: LayerCall) -> Computation:
    return Activation()


def _rescaling(layer_call: LayerCall) -> Computation:
    layer = layer_call.layer
    return Affine(np.asarray(layer.scale, np.float64), np.asarray(layer.offset, np.float64))


def _add(layer_call: LayerCall) -> Computation:
    return Add((1.0,) * layer_call.sources)


def _convex_combination(layer_call: LayerCall) -> Computation:
    return Add(tuple(float(share) for share in layer_call.layer.coefficients()))


def _concatenate(layer_call: LayerCall) -> Computation:
    return Concatenate(layer_call.layer.axis % layer_call.rank)


def _max_pooling(layer_call: LayerCall) -> Computation:
    layer = layer_call.layer
    return MaxPool2D(layer.pool_size, layer.strides, layer.padding)


def _average_pooling(layer_call: LayerCall) -> Computation:
    layer = layer_call.layer
    return AveragePool2D(layer.pool_size, layer.strides, layer.padding)


def _global_max_pooling(layer_call: LayerCall) -> Computation:
    return GlobalMaxPool2D()


def _global_average_pooling(layer_call: LayerCall) -> Computation:
    return GlobalAveragePool2D()


def _reshape(layer_call: LayerCall) -> Computation:
    return Reshape()


def _zero_padding(layer_call: LayerCall) -> Computation:
    return ZeroPad2D(layer_call.layer.padding)


def _identity(layer_call: LayerCall) -> Computation:
    return Identity()


def _softmax(layer_call: LayerCall) -> Computation:
    return Softmax()


def _requantize(layer_call: LayerCall) -> Computation:
    """Return the table of what a layer makes of every integer of its source."""
    grid = layer_call.grid
    steps = np.arange(grid.qmin, grid.qmax + 1) - grid.zero_point
    reals = np.float32(grid.scale) * steps.astype(np.float32)
    values = np.asarray(layer_call.wrapper(reals.reshape(-1, 1, 1, 1))).reshape(-1)
    return Requantize(int(steps[0]), values)


def _median(layer_call: LayerCall) -> Computation:
    return Median2D(layer_call.layer.size)


DESCRIPTIONS: dict[type, Callable[[LayerCall], Computation]] = {
    FusedConv2D: _conv_2d,
    FusedDepthwiseConv2D: _depthwise_conv_2d,
    FusedDense: _dense,
    FusedBatchNormalization: _batch_normalization,
    FusedReLU: _relu,
    FusedAdd: _add,
    ConvexCombination: _convex_combination,
    BitDepthSqueeze: _requantize,
    InputQuantizer: _requantize,
    MedianSqueeze: _median,
    L.Rescaling: _rescaling,
    L.Concatenate: _concatenate,
    L.MaxPooling2D: _max_pooling,
    L.GlobalMaxPooling2D: _global_max_pooling,
    L.AveragePooling2D: _average_pooling,
    L.GlobalAveragePooling2D: _global_average_pooling,
    L.Flatten: _reshape,
    L.Reshape: _reshape,
    L.ZeroPadding2D: _zero_padding,
    L.Dropout: _identity,
    L.Softmax: _softmax,
}
"""What every layer that ``tfdq.quantize_model`` makes computes in integers."""


def _has_bias(layer: Any) -> bool:
    return isinstance(layer, tf_keras.layers.BatchNormalization) or bool(
        layer.batch_norm is not None or layer.use_bias
    )


def _shift(layer: Any, change: np.ndarray, multiplier: np.ndarray) -> None:
    """Add ``change`` to the layer's offset through whichever variable it has for it."""
    norm = layer if isinstance(layer, tf_keras.layers.BatchNormalization) else layer.batch_norm
    if norm is None:
        _shift_variable(layer.bias, change)
    elif norm.center:
        _shift_variable(norm.beta, change)
    else:
        divisor = np.where(multiplier == 0.0, 1.0, multiplier)
        _shift_variable(norm.moving_mean, -change / divisor)


def _shift_variable(variable: Any, change: np.ndarray) -> None:
    variable.assign((np.asarray(variable, np.float64) + change).astype(np.float32))
