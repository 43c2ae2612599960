"""Decide, for each layer of a float model, what it becomes in the quantization-aware one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import tf_keras

from tfdq.quantization.activations import activation_name
from tfdq.quantization.configs import DefensiveQuantizeConfig
from tfdq.quantization.float_model import (
    input_problem,
    mode_problem,
    norm_problem,
    what_no_copy_keeps,
    what_no_quantized_layer_keeps,
)
from tfdq.quantization.graph import Graph, Node
from tfdq.quantization.layers import RELUS, ConvexCombination, FusedReLU
from tfdq.quantization.squeezing import BitDepthSqueeze, MedianSqueeze

L = tf_keras.layers
Role = Literal[
    "input", "kernel", "separable", "norm", "add", "convex", "concat", "relu", "softmax",
    "observed", "average", "squeeze", "pass", "dropped", "skip", "foreign",
]  # fmt: skip

ROLES: dict[type, Role] = {
    L.InputLayer: "input",
    L.Conv2D: "kernel",
    L.DepthwiseConv2D: "kernel",
    L.Dense: "kernel",
    L.SeparableConv2D: "separable",
    L.BatchNormalization: "norm",
    L.Add: "add",
    ConvexCombination: "convex",
    L.Concatenate: "concat",
    L.ReLU: "relu",
    FusedReLU: "relu",
    L.Softmax: "softmax",
    L.Rescaling: "observed",
    BitDepthSqueeze: "squeeze",
    MedianSqueeze: "pass",
    L.AveragePooling2D: "average",
    L.GlobalAveragePooling2D: "average",
    L.MaxPooling2D: "pass",
    L.GlobalMaxPooling2D: "pass",
    L.Flatten: "pass",
    L.Reshape: "pass",
    L.ZeroPadding2D: "pass",
    L.Dropout: "pass",
}
"""How each class of layers is quantized; docs/howto/layer.md adds one of your own."""
_FUSING: tuple[Role, ...] = ("kernel", "separable", "norm", "add", "convex")


@dataclass(frozen=True)
class Step:
    """One layer of the quantization-aware model to be built.

    Attributes:
        node: the node of the float model that it stands for.
        role: how it is quantized.
        inputs: nodes of the float model whose results it takes.
        result: node of the float model whose result it computes (the last one fused into it).
        norm: the BatchNormalization fused into it.
        activation: the activation fused into it: ``linear``, ``relu``,
            ``relu6`` or ``softmax``.
        training: the mode that its BatchNormalization or Dropout is held in; None: the model's.
    """

    node: Node
    role: Role
    inputs: tuple[int, ...]
    result: int
    norm: tf_keras.layers.BatchNormalization | None = None
    activation: str = "linear"
    training: bool | None = None


@dataclass
class Unsupported:
    """Layers that cannot be quantized, with what to do about each."""

    problems: list[str] = field(default_factory=list)

    def add(self, layer: Any, why: str) -> None:
        """Note a layer and what is wrong with it."""
        self.problems.append(f"{layer.name!r} ({type(layer).__name__}): {why}")

    def check(self) -> None:
        """Raise one error that lists every problem.

        Raises:
            ValueError: there is a problem.
        """
        if self.problems:
            raise ValueError(
                f"{len(self.problems)} layer(s) cannot be quantized:\n  - "
                + "\n  - ".join(self.problems)
                + "\nFor each: replace it, leave it in float (skip=[name]; such a model trains "
                "but does not export to integers), or annotate it with a QuantizeConfig of your "
                "own (tfmot.quantization.keras.quantize_annotate_layer)."
            )


def activation_of(layer: Any) -> str | None:
    """Return the activation of a layer: linear, relu, relu6 or softmax; None: another one."""
    if isinstance(layer, (FusedReLU, ConvexCombination)):
        return str(layer.fused_activation)
    if isinstance(layer, L.ReLU):
        plain = layer.negative_slope == 0 and layer.threshold == 0
        if not plain or layer.max_value is None:
            return "relu" if plain else None
        return "relu6" if layer.max_value == 6 else None
    if isinstance(layer, L.Softmax):
        return "softmax" if layer.axis in (-1, [-1], (-1,)) else None
    return activation_name(getattr(layer, "activation", None))


def plan(graph: Graph, quantized: Mapping[str, Any], skip: set[str]) -> list[Step]:
    """Return the steps that quantize a graph.

    Args:
        graph: the float model.
        quantized: names of the layers to quantize, each with a ``QuantizeConfig`` or None.
        skip: names of the layers to leave in float.

    Raises:
        ValueError: some layers cannot be quantized; all of them are listed.
    """
    unsupported = Unsupported()
    roles = [_role(node, quantized, skip, unsupported) for node in graph.nodes]
    _check_sharing(graph, roles, unsupported)
    unsupported.check()
    consumers = graph.consumers()
    fused: set[int] = set()
    steps = []

    def only_taker(index: int, *wanted: Role) -> Node | None:
        if index in graph.outputs or len(consumers[index]) != 1:
            return None
        consumer = graph.nodes[consumers[index][0]]
        return consumer if roles[consumer.index] in wanted and len(consumer.inputs) == 1 else None

    for node, role in zip(graph.nodes, roles, strict=True):
        if node.index in fused:
            continue
        step = Step(node, role, node.inputs, node.index)
        if role in ("norm", "pass"):
            step = replace(step, training=node.training)
        if role in ("kernel", "separable", "convex", "relu", "softmax"):
            step = replace(step, activation=activation_of(node.layer) or "linear")
        if role in ("kernel", "separable") and step.activation == "linear":
            follower = only_taker(step.result, "norm")
            if follower is not None:
                fused.add(follower.index)
                step = replace(
                    step,
                    norm=follower.layer,
                    training=follower.training,
                    result=follower.index,
                )
        if role in _FUSING and step.activation == "linear":
            follower = only_taker(step.result, "relu", "dropped")
            while follower is not None and roles[follower.index] == "dropped":
                fused.add(follower.index)
                step = replace(step, result=follower.index)
                follower = only_taker(step.result, "relu", "dropped")
            if follower is not None:
                fused.add(follower.index)
                relu = activation_of(follower.layer) or "linear"
                step = replace(step, activation=relu, result=follower.index)
        steps.append(step)
    _check_quantizers(graph, steps, quantized, unsupported)
    unsupported.check()
    return steps


def _check_quantizers(
    graph: Graph, steps: list[Step], quantized: Mapping[str, Any], unsupported: Unsupported
) -> None:
    """Note each quantizer of an annotated layer that the layer's step has no place for."""
    first = {step.node.index: step.role for step in steps}
    for node in graph.nodes:
        config = quantized.get(node.layer.name)
        if not isinstance(config, DefensiveQuantizeConfig) or not node.inputs:
            continue
        role = first.get(node.index, "fused")
        lost = []
        if config.kernel is not None and role != "kernel":
            lost.append("a kernel quantizer, which only a layer with one kernel has")
        if config.output is not None and role not in (*_FUSING, "relu"):
            lost.append(
                "an output quantizer, which is that of the layer it is fused into, or of its input"
            )
        if lost:
            unsupported.add(node.layer, f"a DefensiveQuantizeConfig with {' and '.join(lost)}")


def _role(
    node: Node, quantized: Mapping[str, Any], skip: set[str], unsupported: Unsupported
) -> Role:
    layer = node.layer
    role = ROLES.get(type(layer))
    if role == "input":
        wrong = input_problem(layer)
        if wrong:
            unsupported.add(layer, wrong)
        return role
    wrong = what_no_copy_keeps(node)
    if wrong:
        unsupported.add(layer, wrong)
        return "skip"
    if layer.name in skip or layer.name not in quantized:
        return "skip"
    config = quantized[layer.name]
    if config is not None and not isinstance(config, DefensiveQuantizeConfig):
        wrong = what_no_quantized_layer_keeps(node) or _held_foreign(node)
        if wrong:
            unsupported.add(layer, wrong)
        return "foreign"
    if type(layer) is L.Activation:
        name = activation_of(layer)
        found: dict[str | None, Role] = {"softmax": "softmax", "linear": "dropped"}
        role = "relu" if name in RELUS else found.get(name)
        if role is None:
            unsupported.add(
                layer, f"activation {_name(layer.activation)}; use relu, relu6 or softmax"
            )
            return "skip"
    if role is None:
        unsupported.add(layer, _why_unknown(layer))
        return "skip"
    problem = _problem(node, role) or what_no_quantized_layer_keeps(node)
    if problem:
        unsupported.add(layer, problem)
    return role


def _held_foreign(node: Node) -> str | None:
    """Return what is wrong with a call in one mode of a layer with a QuantizeConfig of its own."""
    if node.layer._expects_training_arg and node.training is not None:
        return (
            f"called with training={node.training!r}, which a QuantizeConfig of your own does not "
            "hold while fit observes its ranges; leave the argument out"
        )
    return None


def _name(function: Any) -> str:
    """Return how to call an activation: a function of the user's own with its module."""
    name = getattr(function, "__name__", type(function).__name__)
    module = getattr(function, "__module__", None) or ""
    own = module.split(".")[0] not in ("tf_keras", "keras", "tensorflow", "tfdq")
    return f"'{module}.{name}', a function of your own" if own else repr(name)


def _why_unknown(layer: Any) -> str:
    if type(layer).__name__ in ("TFOpLambda", "SlicingOpLambda", "Lambda"):
        return "an operation that is not a layer; use the layer (Add for +, ReLU for tf.nn.relu)"
    return "there is no rule for this class"


def _problem(node: Node, role: Role) -> str | None:
    """Return what keeps a layer of a known class from being quantized, or None."""
    layer = node.layer
    if getattr(layer, "data_format", None) == "channels_first":
        return "data_format channels_first; the integer runtime knows channels_last only"
    if role in ("kernel", "separable") and activation_of(layer) is None:
        return f"activation {_name(layer.activation)}; use linear, relu, relu6 or softmax"
    if role == "squeeze":
        try:
            layer.grid()
        except ValueError as error:
            return str(error)
    if role == "separable" and activation_of(layer) == "softmax":
        return "a softmax inside a SeparableConv2D; put a Softmax layer behind it"
    if role == "relu" and activation_of(layer) is None:
        return "only a plain ReLU or one with max_value=6 is quantized"
    if role == "softmax" and activation_of(layer) is None:
        return "only a softmax over the last axis is quantized"
    if isinstance(layer, L.Conv2D) and not isinstance(layer, L.DepthwiseConv2D):
        if getattr(layer, "groups", 1) != 1:
            return f"groups={layer.groups}; only groups=1 is quantized"
        if layer.padding not in ("same", "valid"):
            return f"padding {layer.padding!r}; use same or valid"
    if isinstance(layer, L.Dense) and len(node.shape) != 2:
        return f"a Dense on a tensor of rank {len(node.shape)}; Flatten it first"
    if role == "norm" and norm_problem(layer):
        return norm_problem(layer)
    wrong_mode = mode_problem(node, has_mode=isinstance(layer, (L.BatchNormalization, L.Dropout)))
    if wrong_mode:
        return wrong_mode
    if role == "norm" and list(_axes(layer)) != [len(node.shape) - 1]:
        return "a BatchNormalization over another axis than the last"
    if role == "concat" and layer.axis not in (-1, len(node.shape) - 1):
        return "a Concatenate along another axis than the last"
    return None


def _axes(layer: Any) -> list[int]:
    return list(layer.axis) if isinstance(layer.axis, (list, tuple)) else [layer.axis]


def _check_sharing(graph: Graph, roles: list[Role], unsupported: Unsupported) -> None:
    calls: dict[int, int] = {}
    for node in graph.nodes:
        calls[id(node.layer)] = calls.get(id(node.layer), 0) + 1
    told = set()
    for node, role in zip(graph.nodes, roles, strict=True):
        count = calls[id(node.layer)]
        if count > 1 and node.layer.weights and role != "skip" and id(node.layer) not in told:
            told.add(id(node.layer))
            unsupported.add(
                node.layer,
                f"it has weights and is called {count} times; every call needs its own ranges, "
                "so use one layer for each call",
            )
