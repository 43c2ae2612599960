"""Which Keras layers can be quantized, and how: one `Kind` for each family, by class."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras

from tfdq.keras3.graph import Node
from tfdq.keras3.layer_kinds.base import QuantizedLayer
from tfdq.keras3.ranges import RangeSettings
from tfdq.keras3.settings import Settings

RELUS = ("relu", "relu6")
OWN_LAYER: dict[str, Callable[..., QuantizedLayer]] = {}
"""Activations that become a layer of their own: name -> what makes it (`register_activation`)."""


@dataclass(frozen=True)
class Step:
    """One layer of the model to be built, for one or more calls of the float model.

    Attributes:
        node: the call that it stands for.
        kind: how it is quantized.
        result: the last call that is taken in.
        norm: the BatchNormalization that is taken in.
        norm_inference: it was called with ``training=False``.
        activation: what the layer ends with: ``linear``, ``relu``, ``relu6``, or one of
            `OWN_LAYER`.
    """

    node: Node
    kind: Kind
    result: int
    norm: keras.layers.BatchNormalization | None = None
    norm_inference: bool = False
    activation: str = "linear"


@dataclass(frozen=True)
class Request:
    """What a quantized layer is made from.

    Attributes:
        step: the calls that it stands for.
        settings: the settings of the model.
        bits: of its weights and of its result behind a ReLU.
        source_shapes: shapes of its sources.
        source_grids: for each source what its grid comes from: fixed range settings, or the number
            of a value. Equal entries are one grid.
        common: arguments that every quantized layer takes.
        repeated: a step before has the same kernel, with the same BatchNormalization.
        normed: a step with the same kernel takes in a BatchNormalization.
    """

    step: Step
    settings: Settings
    bits: tuple[int, int]
    source_shapes: tuple[Any, ...]
    source_grids: tuple[RangeSettings | int, ...]
    common: dict[str, Any] = field(default_factory=dict)
    repeated: bool = False
    normed: bool = False

    @property
    def layer(self) -> Any:
        """The layer of the float model."""
        return self.step.node.layer

    @property
    def activation(self) -> str:
        """What the quantized layer ends with: ``linear``, ``relu`` or ``relu6``."""
        own = self.step.activation if self.step.activation in RELUS else "linear"
        return self.settings.activation(own)

    @property
    def output(self) -> RangeSettings:
        """Settings of the result's quantizer."""
        return self.settings.output(self.activation, self.bits[1])


def _no_problem(node: Node) -> str | None:
    return None


def no_parts(node: Node) -> None:
    """Return None: a call is quantized as it is."""


def _no_weights(step: Step, layer: Any) -> None:
    return None


@dataclass(frozen=True)
class Kind:
    """How a family of layers is quantized.

    Attributes:
        handles: classes of layers, or of operations.
        quantize: makes the quantized layer; None where there always are parts.
        problem: says what keeps a call from being quantized, or None.
        role: ``kernel``, ``norm``, ``activation``, or nothing that other kinds need to know.
        takes_in: roles of the calls behind it that it can take in, in this order.
        load: copies the weights of the float layers into the built quantized layer.
        merges: it takes a list of sources.
        parts: gives the float layers, built and with their weights, that one after the other
            compute what a call does, the last of its name; None: the call is quantized as it is.
            Asked only where there is no problem.
        group: the group of `QuantizedLayer.variable_groups` that is made of the float layer's
            weights, which calls of one layer share; empty: such a layer is called once.
    """

    handles: tuple[type, ...]
    quantize: Callable[[Request], QuantizedLayer] | None
    problem: Callable[[Node], str | None] = _no_problem
    role: str = ""
    takes_in: tuple[str, ...] = ()
    load: Callable[[Step, Any], None] = _no_weights
    merges: bool = False
    parts: Callable[[Node], list[keras.layers.Layer] | None] = no_parts
    group: str = ""


def operation_of(symbol: Any) -> type:
    """Return the class of the operation that a symbolic tensor comes from."""
    return type(symbol._keras_history.operation)


_PROBE = keras.KerasTensor((None, 1))
_ACTIVATIONS = {
    name: (operation_of(getattr(keras.ops, name)(_PROBE)),)
    for name in (
        *("relu", "relu6", "sigmoid", "tanh", "silu"),
        *("hard_silu", "hard_sigmoid", "hard_tanh"),
    )
}
OPERATIONS = {
    "add": (operation_of(_PROBE + _PROBE),),
    "subtract": (operation_of(_PROBE - _PROBE),),
    "multiply": (operation_of(_PROBE * _PROBE),),
    "divide": (operation_of(_PROBE / _PROBE),),
    "negative": (operation_of(-_PROBE),),
    "concatenate": (operation_of(keras.ops.concatenate([_PROBE, _PROBE])),),
    "maximum": (operation_of(keras.ops.maximum(_PROBE, _PROBE)),),
    "minimum": (operation_of(keras.ops.minimum(_PROBE, _PROBE)),),
    "activation": tuple(cls for (cls,) in _ACTIVATIONS.values()),
}
"""The classes of operations that stand for layers: ``x + y``, ``keras.ops.relu(x)``."""

KINDS: dict[type, Kind] = {}
"""The kind of each class that can be quantized."""


def register_kind(kind: Kind) -> Kind:
    """Add a kind; the classes that it handles may be those of another, which it then replaces."""
    KINDS.update(dict.fromkeys(kind.handles, kind))
    return kind


def register_activation(name: str, make: Callable[..., QuantizedLayer]) -> None:
    """Add an activation that becomes a layer of its own.

    Args:
        name: of the function in Keras.
        make: from the arguments that every quantized layer takes to the layer.
    """
    OWN_LAYER[name] = make


def activation_of(layer: Any) -> str | None:
    """Return what a layer ends with, as in `Step.activation`; None: something else."""
    if isinstance(layer, keras.layers.ReLU):
        plain = layer.negative_slope == 0 and layer.threshold == 0
        if not plain or layer.max_value is None:
            return "relu" if plain else None
        return "relu6" if layer.max_value == 6 else None
    if isinstance(layer, keras.layers.Softmax):
        return "softmax" if layer.axis in (-1, [-1], (-1,)) else None
    if not isinstance(layer, keras.layers.Layer):
        return next((name for name, kinds in _ACTIVATIONS.items() if type(layer) in kinds), None)
    function = getattr(layer, "activation", None)
    if function is None:
        return "linear"
    names = ("linear", *RELUS, *OWN_LAYER)
    return next((name for name in names if _is_function(function, name)), None)


def _is_function(function: Any, name: str) -> bool:
    """Return whether an activation is Keras' of a name; one of the user's may be called alike."""
    homes = [keras.activations, keras.ops]
    if name in RELUS and "tensorflow" in sys.modules:
        homes.append(sys.modules["tensorflow"].nn)
    return any(getattr(home, name, None) is function for home in homes)


def activation_problem(layer: Any) -> str | None:
    """Return what is wrong with a layer's activation, or None."""
    if activation_of(layer) is not None:
        return None
    function = getattr(layer, "activation", None)
    module = getattr(function, "__module__", type(function).__module__)
    name = getattr(function, "__qualname__", type(layer).__name__)
    name = name if module.startswith("keras.") else f"{module}.{name}"
    return f"activation {name!r}; use linear, {', '.join((*RELUS, *OWN_LAYER))}"


def channels_problem(layer: Any) -> str | None:
    """Return what is wrong with a layer's order of axes, or None."""
    if getattr(layer, "data_format", None) == "channels_first":
        return "data_format channels_first; the integer runtime knows channels_last only"
    return None


def ranks_problem(node: Node) -> str | None:
    """Return what is wrong with the shapes that a merge of several tensors takes, or None."""
    shapes = [tuple(value.shape) for value in keras.tree.flatten(node.arguments)]
    if len({len(shape) for shape in shapes}) > 1:
        return (
            f"tensors of shapes {', '.join(map(str, shapes))}; Reshape them to one rank, such as "
            "(1, 1, channels)"
        )
    return None
