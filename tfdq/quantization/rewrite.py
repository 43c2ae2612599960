"""Build the quantization-aware model from the float one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import tensorflow as tf
import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras import (
    quantize_annotate,
    quantize_layout_transform,
)

from tfdq.lagging_statistics import LaggingNorm, lagging_norm, warn_of_lag
from tfdq.quantization.configs import DefensiveQuantizeConfig, OutputQuantizer
from tfdq.quantization.float_copies import constructor_arguments, copy_layer, finish_copy
from tfdq.quantization.float_model import (
    check_calls_are_graphs,
    check_precision,
    layers_with_types,
)
from tfdq.quantization.graph import Graph, read_graph
from tfdq.quantization.layers import (
    RELUS,
    ConvexCombination,
    FusedAdd,
    FusedBatchNormalization,
    FusedConv2D,
    FusedDense,
    FusedDepthwiseConv2D,
    FusedReLU,
)
from tfdq.quantization.plan import Step, plan
from tfdq.quantization.quantized_model import QuantizedModel
from tfdq.quantization.quantizers import (
    FixedRangeQuantizer,
    KernelQuantizer,
    ObservedRangeQuantizer,
)
from tfdq.quantization.settings import SOFTMAX_RANGE, Settings
from tfdq.quantization.squeezing import BitDepthSqueeze, MedianSqueeze
from tfdq.quantization.wrapper import InputQuantizer, PortableQuantizeWrapper, QuantizeWrapper
from tfdq.settings.quantization import LINEAR_BITS

L = tf_keras.layers
PREFIX = "quant_"
# Arguments of SeparableConv2D that belong to its first half, and those of both.
_DEPTHWISE_ARGUMENTS = (
    "kernel_size",
    "strides",
    "padding",
    "dilation_rate",
    "depth_multiplier",
    "depthwise_regularizer",
    "depthwise_constraint",
)
_SHARED_ARGUMENTS = ("trainable", "data_format")
# Whatever the global policy is.
_FLOAT32 = "float32"


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
            ValueError: some layers cannot be quantized, or are not float32; all of them are
                listed.
        """
        graph, annotated = unwrap_annotations(read_graph(model))
        check_precision(layers_with_types(graph))
        check_calls_are_graphs(model)
        self.settings.check_names({node.layer.name for node in graph.nodes if node.inputs})
        quantized = {
            name: entry.get("quantize_config") for name, entry in layer_quantize_map.items()
        }
        quantized.update(annotated)
        steps = plan(graph, quantized, set(self.settings.skip))
        builder = _Builder(graph, steps, quantized, self.settings)
        built = builder.build(model)
        warn_of_lag(builder.lagging)
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
        self.rounded: dict[int, Any] = {}
        self.copies: dict[int, tf_keras.layers.Layer] = {}
        self.names: set[str] = set()
        self.lagging: list[LaggingNorm] = []
        self.ends = self._ends()

    def build(self, model: tf_keras.Model) -> tf_keras.Model:
        """Return the new model, with the weights and the structures of the float one."""
        for step in self.steps:
            self._add(step)
        inputs = [self.inputs[i] for i in self.graph.inputs]
        outputs = [self.tensors[i] for i in self.graph.outputs]
        quantized = QuantizedModel(
            tf.nest.pack_sequence_as(model._nested_inputs, inputs),
            tf.nest.pack_sequence_as(model._nested_outputs, outputs),
            name=model.name,
        )
        quantized.name_outputs(model.output_names)
        return quantized

    def _ends(self) -> set[int]:
        """Return the first and the last nodes with kernels (of each input and output)."""
        kernels = {s.node.index for s in self.steps if s.role in ("kernel", "separable")}
        consumers = self.graph.consumers()

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

        first = nearest(self.graph.inputs, lambda i: consumers[i])
        last = nearest(self.graph.outputs, lambda i: self.graph.nodes[i].inputs)
        return first | last

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
        floats = [self.tensors[i] for i in step.inputs]
        if step.role == "dropped":
            self._finish(step, floats[0], self.quantizers[step.inputs[0]])
            return
        if step.role == "skip":
            self._add_plain(step, floats)
            return
        if step.role == "foreign":
            self._add_foreign(step, floats)
            return
        arguments = [self._on_a_grid(source) for source in step.inputs]
        if step.role == "separable":
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
        consumers = self.graph.consumers()[step.node.index]
        float_only = all(self.graph.nodes[i].layer.name not in self.quantized for i in consumers)
        if float_only:
            self._finish(step, source, None)
            return
        squeezed = self._squeezed_range(step.node.index)
        if self.settings.input_range is None and squeezed is not None:
            quantizer = FixedRangeQuantizer(LINEAR_BITS, *squeezed)
        else:
            quantizer = self.settings.input_quantizer()
        layer = InputQuantizer(quantizer, dtype=_FLOAT32, name=self._unique(PREFIX + name))
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

    def _on_a_grid(self, source: int) -> Any:
        """Return a result as a quantized layer takes it: that of a float layer quantized."""
        if self.quantizers[source] is None:
            name = self._unique(f"{PREFIX}{self.graph.nodes[source].layer.name}_output")
            self.quantizers[source] = ObservedRangeQuantizer(LINEAR_BITS)
            layer = InputQuantizer(self.quantizers[source], dtype=_FLOAT32, name=name)
            self.rounded[source] = layer(self.tensors[source])
        return self.rounded.get(source, self.tensors[source])

    def _add_plain(self, step: Step, arguments: list[Any]) -> None:
        """Append a copy of a float layer, called as the layer is; one copy for all its calls."""
        layer = step.node.layer
        args, kwargs = step.node.arguments(arguments)
        known = self.copies.get(id(layer))
        copy = known or copy_layer(layer, self._unique(layer.name))
        (tensor,) = tf.nest.flatten(copy(*args, **kwargs))
        if known is None:
            finish_copy(layer, copy)
            self.copies[id(layer)] = copy
        self._finish(step, tensor, None)

    def _add_foreign(self, step: Step, arguments: list[Any]) -> None:
        layer = step.node.layer
        taken = step.node.structured(arguments)
        copy = copy_layer(layer, self._unique(layer.name))
        # tfmot's wrapper takes the variables away from the layer, so they are set before it.
        copy.build(tf.nest.map_structure(lambda tensor: tensor.shape, taken))
        finish_copy(layer, copy)
        wrapper = PortableQuantizeWrapper(
            copy,
            self.quantized[layer.name],
            name_prefix="",
            dtype=_FLOAT32,
            name=self._unique(PREFIX + copy.name),
        )
        self._finish(step, wrapper(taken), None)

    def _wrap(
        self,
        layer: tf_keras.layers.Layer,
        arguments: Any,
        kernel: KernelQuantizer | None,
        output: OutputQuantizer | None,
        training: bool | None = None,
    ) -> Any:
        wrapper = QuantizeWrapper(
            layer,
            DefensiveQuantizeConfig(kernel, output),
            layer_training=training,
            dtype=_FLOAT32,
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
        norm = None
        if step.norm is not None:
            norm = L.BatchNormalization.from_config(self._norm_arguments(step.norm))
        penalty = self.settings.penalty(depthwise, tuple(config.get("strides", (1, 1))))
        if norm is not None and step.training is None:
            lagging = lagging_norm(step.norm, norm.momentum, getattr(penalty, "on", "kernel"))
            self.lagging += [] if lagging is None else [lagging]
        return kind(
            **config,
            batch_norm=norm,
            fused_activation=self.settings.fused_activation(step.activation),
            penalty=penalty,
            penalty_schedule=self.settings.beta_schedule,
        )

    def _norm_arguments(self, norm: tf_keras.layers.BatchNormalization) -> dict[str, Any]:
        """Return the arguments of a BatchNorm, with the momentum that the settings give it."""
        momentum = self.settings.norm_momentum(norm.momentum)
        return {**constructor_arguments(norm), "momentum": momentum}

    def _add_kernel(self, step: Step, argument: Any) -> None:
        layer = step.node.layer
        kind = {L.Conv2D: FusedConv2D, L.DepthwiseConv2D: FusedDepthwiseConv2D, L.Dense: FusedDense}
        depthwise = isinstance(layer, L.DepthwiseConv2D)
        config = constructor_arguments(layer)
        config.update(name=self._unique(layer.name), activation="linear")
        fused = self._fused(kind[type(layer)], step, config, depthwise)
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
        tensor = self._wrap(fused, argument, quantizer, output, step.training)
        fused.set_float_weights(
            layer.get_weights(), [] if step.norm is None else step.norm.get_weights()
        )
        if step.activation == "softmax":
            softmax = L.Softmax(name=self._unique(f"{layer.name}_softmax"), dtype=_FLOAT32)
            output = FixedRangeQuantizer(LINEAR_BITS, *SOFTMAX_RANGE)
            tensor = self._wrap(softmax, tensor, None, output)
        self._finish(step, tensor, output)

    def _bits(self, step: Step) -> tuple[int, int]:
        index = step.node.index
        return self.settings.bits_of(step.node.layer.name, index in self.ends)

    def _add_separable(self, step: Step, argument: Any) -> None:
        layer = step.node.layer
        config = constructor_arguments(layer)
        weight_bits, activation_bits = self._bits(step)
        both = {"dtype": _FLOAT32, **{key: config[key] for key in _SHARED_ARGUMENTS}}
        depthwise = FusedDepthwiseConv2D(
            **both,
            **{key: config[key] for key in _DEPTHWISE_ARGUMENTS},
            use_bias=False,
            name=self._unique(f"{layer.name}_depthwise"),
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
                **both,
                "filters": config["filters"],
                "kernel_size": 1,
                "use_bias": config["use_bias"],
                "kernel_regularizer": config["pointwise_regularizer"],
                "kernel_constraint": config["pointwise_constraint"],
                "bias_regularizer": config["bias_regularizer"],
                "bias_constraint": config["bias_constraint"],
                "name": self._unique(layer.name),
            },
            depthwise=False,
        )
        output = self._output_quantizer(step, activation_bits)
        tensor = self._wrap(pointwise, middle, KernelQuantizer(weight_bits), output, step.training)
        first, *rest = layer.get_weights()
        depthwise.set_float_weights([first], [])
        pointwise.set_float_weights(rest, [] if step.norm is None else step.norm.get_weights())
        self._finish(step, tensor, output)

    def _add_other(self, step: Step, arguments: list[Any]) -> None:
        """Append a layer without a kernel."""
        layer = step.node.layer
        is_norm = step.role == "norm"
        config = self._norm_arguments(layer) if is_norm else layer.get_config()
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
            new = FusedReLU(name=config["name"], fused_activation=relu, dtype=_FLOAT32)
            output = self._output_quantizer(step, bits)
        elif step.role == "softmax":
            new = L.Softmax(name=config["name"], dtype=_FLOAT32)
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
        taken = step.node.structured(arguments)
        tensor = self._wrap(new, taken, None, output, step.training)
        if layer.weights:
            new.set_weights(layer.get_weights())
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
