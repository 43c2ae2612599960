"""Build the quantization-aware model from the float one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras import (
    quantize_annotate,
    quantize_layout_transform,
)

from tfdq.quantization.configs import DefensiveQuantizeConfig, OutputQuantizer
from tfdq.quantization.graph import Graph, read_graph
from tfdq.quantization.lagging_statistics import LaggingNorm, lagging_norm, warn_of_lag
from tfdq.quantization.layers import (
    RELUS,
    ConvexCombination,
    FusedAdd,
    FusedBatchNormalization,
    FusedConv2D,
    FusedDense,
    FusedDepthwiseConv2D,
    FusedReLU,
    norm_config,
)
from tfdq.quantization.plan import Step, plan
from tfdq.quantization.quantized_model import QuantizedModel
from tfdq.quantization.quantizers import (
    FixedRangeQuantizer,
    KernelQuantizer,
    ObservedRangeQuantizer,
)
from tfdq.quantization.settings import LINEAR_BITS, SOFTMAX_RANGE, Settings
from tfdq.quantization.squeezing import BitDepthSqueeze, MedianSqueeze
from tfdq.quantization.wrapper import InputQuantizer, PortableQuantizeWrapper, QuantizeWrapper

L = tf_keras.layers
PREFIX = "quant_"
# Arguments of SeparableConv2D that belong to its first half.
_DEPTHWISE_ARGUMENTS = ("kernel_size", "strides", "padding", "dilation_rate", "depth_multiplier")


class DefensiveLayoutTransform(quantize_layout_transform.QuantizeLayoutTransform):
    """Rewrite a float model into fused, wrapped, fake-quantized layers.

    Convolution or Dense, BatchNorm and ReLU become one layer whose output is quantized once, as
    the integer runtime computes it; so do BatchNorm and ReLU, Add and ReLU. A SeparableConv2D
    becomes its two convolutions. Nested models are flattened.

    Args:
        settings: how to quantize.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def apply(
        self, model: tf_keras.Model, layer_quantize_map: dict[str, Any]
    ) -> tuple[tf_keras.Model, dict[str, Any]]:
        """Return the quantization-aware model, and the map without the layers done.

        Args:
            model: a built Functional or Sequential float model.
            layer_quantize_map: names of the layers to quantize; the value of each may hold a
                ``quantize_config``.

        Raises:
            ValueError: some layers cannot be quantized; all of them are listed.
        """
        graph, annotated = unwrap_annotations(read_graph(model))
        self.settings.check_names({node.layer.name for node in graph.nodes if node.inputs})
        quantized = {
            name: entry.get("quantize_config") for name, entry in layer_quantize_map.items()
        }
        quantized.update(annotated)
        steps = plan(graph, quantized, set(self.settings.skip))
        builder = _Builder(graph, steps, quantized, self.settings)
        built = builder.build(model.name)
        # Called by quantize_model or by tfmot's quantize_apply, and that by the user.
        warn_of_lag(builder.lagging, stacklevel=3)
        return built, {}


def unwrap_annotations(graph: Graph) -> tuple[Graph, dict[str, Any]]:
    """Return the graph without tfmot's annotation wrappers, and the configs they carried."""
    configs: dict[str, Any] = {}
    nodes = []
    for node in graph.nodes:
        if isinstance(node.layer, quantize_annotate.QuantizeAnnotate):
            configs[node.layer.layer.name] = node.layer.quantize_config
            node = replace(node, layer=node.layer.layer)
        nodes.append(node)
    return replace(graph, nodes=tuple(nodes)), configs


class _Builder:
    """Replays the steps of a plan on new layers, and copies the weights into them."""

    def __init__(
        self,
        graph: Graph,
        steps: list[Step],
        quantized: Mapping[str, Any],
        settings: Settings,
    ) -> None:
        self.graph = graph
        self.steps = steps
        self.quantized = quantized
        self.settings = settings
        self.inputs: dict[int, Any] = {}
        self.tensors: dict[int, Any] = {}
        self.quantizers: dict[int, Any] = {}
        self.names: set[str] = set()
        self.weights: list[tuple[tf_keras.layers.Layer, list[np.ndarray]]] = []
        self.lagging: list[LaggingNorm] = []
        self.first, self.last = self._ends()

    def build(self, name: str) -> tf_keras.Model:
        """Return the new model with the float model's weights."""
        for step in self.steps:
            self._add(step)
        model = QuantizedModel(
            self._pick([self.inputs[i] for i in self.graph.inputs]),
            self._pick([self.tensors[i] for i in self.graph.outputs]),
            name=name,
        )
        for layer, values in self.weights:
            layer.set_weights(values)
        return model

    @staticmethod
    def _pick(tensors: list[Any]) -> Any:
        return tensors[0] if len(tensors) == 1 else tensors

    def _ends(self) -> tuple[set[int], set[int]]:
        """Return the first and the last nodes with kernels (of each input and output)."""
        kernels = {s.node.index for s in self.steps if s.role in ("kernel", "separable")}
        takers = self.graph.consumers()

        def nearest(starts: tuple[int, ...], following: Any) -> set[int]:
            found, seen, front = set(), set(), list(starts)
            while front:
                index = front.pop()
                if index in seen:
                    continue
                seen.add(index)
                if index in kernels:
                    found.add(index)
                else:
                    front.extend(following(index))
            return found

        first = nearest(self.graph.inputs, lambda i: takers[i])
        last = nearest(self.graph.outputs, lambda i: self.graph.nodes[i].inputs)
        return first, last

    def _unique(self, name: str) -> str:
        """Return a name that no layer has yet (nested models may repeat names)."""
        candidate, count = name, 1
        while candidate in self.names:
            candidate, count = f"{name}_{count}", count + 1
        self.names.add(candidate)
        return candidate

    def _add(self, step: Step) -> None:
        """Append the layers of one step."""
        if step.role == "input":
            self._add_input(step)
            return
        if step.role not in ("skip", "foreign", "dropped"):
            for source in step.inputs:
                self._quantize_float(source)
        arguments = [self.tensors[i] for i in step.inputs]
        if step.role == "dropped":
            self._finish(step, arguments[0], self.quantizers[step.inputs[0]])
        elif step.role == "skip":
            self._add_plain(step, arguments)
        elif step.role == "foreign":
            self._add_foreign(step, arguments)
        elif step.role == "separable":
            self._add_separable(step, arguments[0])
        elif step.role == "kernel":
            self._add_kernel(step, arguments[0])
        else:
            self._add_other(step, arguments)

    def _finish(self, step: Step, tensor: Any, quantizer: Any) -> None:
        self.tensors[step.result] = tensor
        self.quantizers[step.result] = quantizer

    def _add_input(self, step: Step) -> None:
        layer = step.node.layer
        name = self._unique(layer.name)
        source = L.Input(batch_shape=step.node.shape, dtype=layer.dtype, name=name)
        self.inputs[step.result] = source
        takers = self.graph.consumers()[step.node.index]
        float_only = all(self.graph.nodes[i].layer.name not in self.quantized for i in takers)
        if float_only:
            self._finish(step, source, None)
            return
        squeezed = self._squeezed_range(step.node.index)
        if self.settings.input_range is None and squeezed is not None:
            quantizer = FixedRangeQuantizer(LINEAR_BITS, *squeezed)
        else:
            quantizer = self.settings.input_quantizer()
        layer = InputQuantizer(quantizer, name=self._unique(PREFIX + name))
        self._finish(step, layer(source), quantizer)

    def _squeezed_range(self, index: int) -> tuple[float, float] | None:
        """Return the range that a bit-depth squeezer at the input declares; None without one."""
        consumers = self.graph.consumers()
        while len(consumers[index]) == 1:
            index = consumers[index][0]
            layer = self.graph.nodes[index].layer
            if type(layer) is BitDepthSqueeze:
                return layer.input_range
            if type(layer) is not MedianSqueeze:
                break
        return None

    def _quantize_float(self, source: int) -> None:
        """Quantize the output of a layer left in float, for the quantized layer that takes it."""
        if self.quantizers[source] is None:
            name = self._unique(f"{PREFIX}{self.graph.nodes[source].layer.name}_output")
            self.quantizers[source] = ObservedRangeQuantizer(LINEAR_BITS)
            layer = InputQuantizer(self.quantizers[source], name=name)
            self.tensors[source] = layer(self.tensors[source])

    def _add_plain(self, step: Step, arguments: list[Any]) -> None:
        layer = self._clone(step.node.layer)
        self._finish(step, layer(self._pick(arguments)), None)

    def _add_foreign(self, step: Step, arguments: list[Any]) -> None:
        layer = self._clone(step.node.layer)
        if step.node.layer.weights:
            # tfmot's wrapper takes the variables away from the layer, so they are set before it.
            layer.build(self._pick([argument.shape for argument in arguments]))
            layer.set_weights(self.weights.pop()[1])
        wrapper = PortableQuantizeWrapper(
            layer,
            self.quantized[step.node.layer.name],
            name_prefix="",
            name=self._unique(PREFIX + layer.name),
        )
        self._finish(step, wrapper(self._pick(arguments)), None)

    def _clone(self, layer: tf_keras.layers.Layer) -> tf_keras.layers.Layer:
        config = layer.get_config()
        config["name"] = self._unique(config["name"])
        clone = type(layer).from_config(config)
        if layer.weights:
            self.weights.append((clone, layer.get_weights()))
        return clone

    def _wrap(
        self,
        layer: tf_keras.layers.Layer,
        arguments: Any,
        kernel: KernelQuantizer | None,
        output: OutputQuantizer | None,
    ) -> Any:
        wrapper = QuantizeWrapper(
            layer,
            DefensiveQuantizeConfig(kernel, output),
            name=self._unique(PREFIX + layer.name),
        )
        return wrapper(arguments)

    def _output_quantizer(self, step: Step, bits: int) -> OutputQuantizer:
        given = self.quantized.get(step.node.layer.name)
        if given is not None and given.output is not None:
            return given.output
        if step.activation in RELUS:
            return self.settings.activation_quantizer(bits)
        return ObservedRangeQuantizer(LINEAR_BITS)

    def _fused(self, kind: type, step: Step, config: dict[str, Any], depthwise: bool) -> Any:
        """Return a fused layer with the step's BatchNorm, activation and penalty."""
        norm = None if step.norm is None else self._norm_config(step.norm)
        penalty = self.settings.penalty(depthwise, tuple(config.get("strides", (1, 1))))
        lagging = lagging_norm(step.norm, norm["momentum"] if norm else 0.0, penalty)
        self.lagging += [] if lagging is None else [lagging]
        return kind(
            **config,
            batch_norm=norm,
            fused_activation=self.settings.fused_activation(step.activation),
            penalty=penalty,
            penalty_schedule=self.settings.beta_schedule,
        )

    def _norm_config(self, norm: tf_keras.layers.BatchNormalization) -> dict[str, Any]:
        """Return the config of a BatchNorm, with the momentum that the settings give it."""
        return {**norm_config(norm), "momentum": self.settings.norm_momentum(norm.momentum)}

    def _add_kernel(self, step: Step, argument: Any) -> None:
        layer = step.node.layer
        kind = {L.Conv2D: FusedConv2D, L.DepthwiseConv2D: FusedDepthwiseConv2D, L.Dense: FusedDense}
        depthwise = isinstance(layer, L.DepthwiseConv2D)
        config = layer.get_config()
        config.update(name=self._unique(layer.name), activation="linear")
        fused = self._fused(kind[type(layer)], step, config, depthwise)
        values = layer.get_weights() + (step.norm.get_weights() if step.norm else [])
        weight_bits, activation_bits = self._bits(step)
        given = self.quantized[layer.name]
        quantizer = (
            given.kernel
            if given is not None and given.kernel is not None
            else (
                KernelQuantizer(
                    weight_bits,
                    per_channel=not isinstance(layer, L.Dense) or step.norm is not None,
                    depthwise=depthwise,
                )
            )
        )
        output = self._output_quantizer(step, activation_bits)
        tensor = self._wrap(fused, argument, quantizer, output)
        self.weights.append((fused, values))
        if step.activation == "softmax":
            softmax = L.Softmax(name=self._unique(f"{layer.name}_softmax"))
            output = FixedRangeQuantizer(LINEAR_BITS, *SOFTMAX_RANGE)
            tensor = self._wrap(softmax, tensor, None, output)
        self._finish(step, tensor, output)

    def _bits(self, step: Step) -> tuple[int, int]:
        index = step.node.index
        return self.settings.bits_of(step.node.layer.name, index in self.first, index in self.last)

    def _add_separable(self, step: Step, argument: Any) -> None:
        layer = step.node.layer
        config = layer.get_config()
        weight_bits, activation_bits = self._bits(step)
        depthwise = FusedDepthwiseConv2D(
            **{key: config[key] for key in _DEPTHWISE_ARGUMENTS},
            use_bias=False,
            name=self._unique(f"{layer.name}_depthwise"),
            depthwise_regularizer=config["depthwise_regularizer"],
            penalty=self.settings.penalty(depthwise=True, strides=tuple(config["strides"])),
            penalty_schedule=self.settings.beta_schedule,
        )
        middle = self._wrap(
            depthwise,
            argument,
            KernelQuantizer(weight_bits, depthwise=True),
            ObservedRangeQuantizer(LINEAR_BITS),
        )
        pointwise = self._fused(
            FusedConv2D,
            step,
            {
                "filters": config["filters"],
                "kernel_size": 1,
                "use_bias": config["use_bias"],
                "kernel_regularizer": config["pointwise_regularizer"],
                "name": self._unique(layer.name),
            },
            depthwise=False,
        )
        output = self._output_quantizer(step, activation_bits)
        tensor = self._wrap(pointwise, middle, KernelQuantizer(weight_bits), output)
        first, *rest = layer.get_weights()
        self.weights.append((depthwise, [first]))
        norm = step.norm.get_weights() if step.norm else []
        self.weights.append((pointwise, rest + norm))
        self._finish(step, tensor, output)

    def _add_other(self, step: Step, arguments: list[Any]) -> None:
        """Append a layer without a kernel."""
        layer = step.node.layer
        config = self._norm_config(layer) if step.role == "norm" else layer.get_config()
        config["name"] = self._unique(layer.name)
        relu = self.settings.fused_activation(step.activation)
        _, bits = self._bits(step)
        output: OutputQuantizer | None = None
        if step.role == "norm":
            new = FusedBatchNormalization(**config, fused_activation=relu)
            output = self._output_quantizer(step, bits)
        elif step.role == "add":
            new = FusedAdd(**config, fused_activation=relu)
            output = self._output_quantizer(step, bits)
        elif step.role == "convex":
            new = ConvexCombination(**{**config, "fused_activation": relu})
            output = self._output_quantizer(step, bits)
        elif step.role == "relu":
            new = FusedReLU(name=config["name"], fused_activation=relu)
            output = self._output_quantizer(step, bits)
        elif step.role == "softmax":
            new = L.Softmax(name=config["name"])
            output = FixedRangeQuantizer(LINEAR_BITS, *SOFTMAX_RANGE)
        else:
            new = type(layer).from_config(config)
            if step.role == "average":
                output = ObservedRangeQuantizer(LINEAR_BITS)
            elif step.role == "observed":
                output = ObservedRangeQuantizer(LINEAR_BITS, update="extremes")
            elif step.role == "squeeze":
                output = FixedRangeQuantizer(layer.bits, *layer.input_range)
            elif step.role == "concat":
                output = self._joint_quantizer(step)
        tensor = self._wrap(new, self._pick(arguments), None, output)
        if layer.weights:
            self.weights.append((new, layer.get_weights()))
        self._finish(step, tensor, output or self.quantizers[step.inputs[0]])

    def _joint_quantizer(self, step: Step) -> OutputQuantizer | None:
        """Return the quantizer of a Concatenate; None where all inputs are on one grid."""
        sources = [self.quantizers[i] for i in step.inputs]
        fixed = [s for s in sources if isinstance(s, FixedRangeQuantizer)]
        if len(fixed) == len(sources):
            if len({(s.bits, s.low, s.high) for s in fixed}) == 1:
                return None
            if len({(s.low, s.high) for s in fixed}) == 1:
                return FixedRangeQuantizer(max(s.bits for s in fixed), fixed[0].low, fixed[0].high)
        elif all(s is sources[0] for s in sources) and sources[0] is not None:
            return None
        return ObservedRangeQuantizer(LINEAR_BITS)
