"""Keras 3 models to tf_keras models, which tfmot and this package quantize.

`from_keras3` walks the graph of a Functional or Sequential Keras 3 model, makes a tf_keras layer
for each of its layers, calls those as the model calls its own, copies the weights, and compares
the two models, layer by layer and end to end, before it returns.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tf_keras

from tfdq.mistakes import WrongTypeError
from tfdq.model_files.keras3 import read_keras3
from tfdq.quantization.keras3_layers import (
    UnsupportedError,
    convert_input,
    convert_layer,
    convert_operation,
)
from tfdq.which_keras import is_keras3_model

CustomLayers = Mapping[str, Callable[[Any], tf_keras.layers.Layer]]

# What float16 and bfloat16 layers may differ by, relative: 8 units in the last place.
_ROUNDING = {"float16": 2.0**-8, "bfloat16": 2.0**-5}


def load_keras3(
    path: str | Path, rtol: float = 1e-5, custom_layers: CustomLayers | None = None
) -> tf_keras.Model:
    """Load a `.keras` file of Keras 3 and convert the model.

    The file is checked, then read in Keras' safe mode: code in it (Lambda layers) is refused, not
    run.

    Args:
        path: The file.
        rtol: As for `from_keras3`.
        custom_layers: As for `from_keras3`; the Keras 3 classes must be registered with
            `keras.saving.register_keras_serializable`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If Keras can't read it, or the model can't be converted.
    """
    return from_keras3(read_keras3(path), rtol=rtol, custom_layers=custom_layers)


def from_keras3(
    model: Any, rtol: float = 1e-5, custom_layers: CustomLayers | None = None
) -> tf_keras.Model:
    """Convert a Functional or Sequential Keras 3 model to tf_keras.

    Layer names, weights, `trainable` flags, shared layers, nested models, several inputs and
    outputs (also in dictionaries) and `training=False` calls are kept. Operators and
    `keras.ops` functions in the graph become layers where one computes the same (`x + 3.0` a
    Rescaling). The result is not compiled; the model passed in is not changed.

    Args:
        model: A built Keras 3 model on the TensorFlow backend.
        rtol: Largest difference allowed of the two models' outputs, and of every layer's, on
            random inputs, relative to the largest magnitude. Layers in half precision may differ
            by a few of its roundings.
        custom_layers: From a layer's name, or its class's, to a function that takes the Keras 3
            layer and returns an unbuilt tf_keras layer of that name, whose weights have the same
            shapes in the same order.

    Returns:
        A Functional tf_keras model.

    Raises:
        TypeError: If it is no Keras 3 model, or a subclassed one.
        ValueError: If the model is not built, is quantized, the backend is JAX or PyTorch, some
            layers can't cross (all are listed, with what to do), or outputs differ.
    """
    if isinstance(model, tf_keras.Model):
        raise WrongTypeError(f"{model.name!r} is a tf_keras model already: use it as it is.")
    if not is_keras3_model(model):
        raise WrongTypeError(f"expected a Keras 3 model, got a {type(model).__name__}")
    if hasattr(model, "as_trained"):
        raise ValueError(
            f"{model.name!r} is quantized: convert the float model that it was made from, and "
            "quantize that"
        )
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            f"Keras runs on the {keras.backend.backend()} backend, and tf_keras on TensorFlow: do "
            "this in a process with KERAS_BACKEND=tensorflow; model.save('model.keras') takes a "
            "model there."
        )
    converter = _Converter(dict(custom_layers or {}))
    converter.prepare(model)
    if converter.problems:
        raise ValueError(
            f"model {model.name!r} can't be converted to tf_keras:\n  "
            + "\n  ".join(converter.problems)
        )
    converted = converter.replay(model)
    converter.copy_state()
    _check_equal(model, converted, converter, rtol)
    return converted


class _Converter:
    """The tf_keras counterparts of a Keras 3 model's layers, operations and nested models.

    Attributes:
        problems: One line for each layer that can't cross.
    """

    def __init__(self, custom: dict[str, Callable[[Any], tf_keras.layers.Layer]]) -> None:
        """Start with no counterparts; `custom` as in `from_keras3`."""
        self.problems: list[str] = []
        self._custom = custom
        # By the id of the Keras 3 object; a nested model's is None until it is replayed.
        self._counterparts: dict[int, Any] = {}
        # What an operation's counterpart is called with: operations are called once each.
        self._arguments: dict[int, Any] = {}
        self._leaves: list[tuple[Any, tf_keras.layers.Layer]] = []
        self._models: list[tuple[Any, tf_keras.Model]] = []

    def prepare(self, model: Any, prefix: str = "") -> None:
        """Make the counterparts of all layers, nested ones included, and note what can't cross."""
        try:
            function = _function(model)
        except UnsupportedError as error:
            self._note(model, prefix, error)
            return
        for tensor in function.inputs:
            try:
                convert_input(tensor._keras_history.operation)
            except UnsupportedError as error:
                self._note(tensor._keras_history.operation, prefix, error)
        for node in _nodes(function):
            operation = node.operation
            try:
                if id(operation) not in self._counterparts:
                    self._counterparts[id(operation)] = None
                    if isinstance(operation, keras.Model):
                        self.prepare(operation, f"{prefix}{operation.name}/")
                    else:
                        self._counterparts[id(operation)] = self._layer(node)
                _keywords(node)
            except UnsupportedError as error:
                self._note(operation, prefix, error)

    def replay(self, model: Any) -> tf_keras.Model:
        """Call the counterparts as the model calls its layers; returns the model they make."""
        function = _function(model)
        tensors = {
            id(tensor): convert_input(tensor._keras_history.operation) for tensor in function.inputs
        }
        for node in _nodes(function):
            operation = node.operation
            if isinstance(operation, keras.Model) and self._counterparts[id(operation)] is None:
                self._counterparts[id(operation)] = self.replay(operation)
            outputs = self.call(node, tensors)
            for symbol, output in zip(node.outputs, keras.tree.flatten(outputs), strict=True):
                tensors[id(symbol)] = output
        result = tf_keras.Model(
            _fill(function._inputs_struct, tensors),
            _fill(function._outputs_struct, tensors),
            name=model.name,
        )
        self._models.append((model, result))
        return result

    def call(self, node: Any, tensors: Mapping[int, Any], inference: bool = False) -> Any:
        """Call the counterpart of a node's layer with the values of the node's inputs."""
        layer = self._counterparts[id(node.operation)]
        argument = self._arguments.get(id(node.operation), node.arguments.args[0])
        keywords = _keywords(node)
        if inference and _training_parameter(layer) is not None:
            keywords["training"] = False
        return layer(_fill(argument, tensors), **keywords)

    def copy_state(self) -> None:
        """Copy weights and `trainable` flags to the counterparts."""
        # Outermost model first: setting a model's flag sets its layers', which come after.
        for original, counterpart in reversed(self._models):
            counterpart.trainable = original.trainable
        for original, counterpart in self._leaves:
            weights = original.get_weights()
            shapes = [weight.shape for weight in weights]
            wanted = [tuple(weight.shape) for weight in counterpart.weights]
            if shapes != wanted:
                raise ValueError(
                    f"layer {original.name!r} ({type(original).__name__}) has weights of shapes "
                    f"{shapes}, but its tf_keras counterpart {wanted}."
                )
            counterpart.set_weights(weights)
            if isinstance(counterpart, tf_keras.layers.Normalization):
                # It computes with tensors derived from the weights, which this refreshes.
                counterpart.finalize_state()
            counterpart.trainable = original.trainable

    def _layer(self, node: Any) -> tf_keras.layers.Layer:
        """Make the counterpart of a layer or operation."""
        operation = node.operation
        if not isinstance(operation, keras.layers.Layer):
            layer, argument = convert_operation(operation, node.arguments.args)
            self._arguments[id(operation)] = argument
            return layer
        custom = self._custom.get(operation.name, self._custom.get(type(operation).__name__))
        layer = convert_layer(operation) if custom is None else custom(operation)
        if not isinstance(layer, tf_keras.layers.Layer) or layer.name != operation.name:
            raise UnsupportedError(
                f"custom_layers gave {layer!r}, not a tf_keras layer named {operation.name!r}"
            )
        self._leaves.append((operation, layer))
        return layer

    def _note(self, operation: Any, prefix: str, error: UnsupportedError) -> None:
        """Note a layer that can't cross, once."""
        line = f"{prefix}{operation.name} ({type(operation).__name__}): {error}"
        if line not in self.problems:
            self.problems.append(line)


class _Comparison:
    """Both models on one random input; every layer on what the Keras 3 model gives it."""

    def __init__(self, converter: _Converter, rtol: float) -> None:
        """Start with no differences; `rtol` as in `from_keras3`."""
        self.differences: list[str] = []
        self.half_precision = False
        self._converter = converter
        self._rtol = rtol

    def run(self, model: Any, inputs: list[Any], prefix: str = "") -> Any:
        """Return the Keras 3 model's outputs, and note each layer whose counterpart differs."""
        function = _function(model)
        values = {id(t): x for t, x in zip(function.inputs, inputs, strict=True)}
        for node in _nodes(function):
            operation = node.operation
            if isinstance(operation, keras.Model):
                given = keras.tree.flatten(_fill(node.arguments.args[0], values))
                outputs = self.run(operation, given, f"{prefix}{operation.name}/")
            else:
                inference = {} if _training_parameter(operation) is None else {"training": False}
                outputs = operation(*_fill(node.arguments.args, values), **inference)
                actual = self._converter.call(node, values, inference=True)
                self._compare(operation, outputs, actual, prefix)
            for symbol, output in zip(node.outputs, keras.tree.flatten(outputs), strict=True):
                values[id(symbol)] = output
        return _fill(function._outputs_struct, values)

    def _compare(self, operation: Any, expected: Any, actual: Any, prefix: str) -> None:
        """Note the layer if any of its outputs differs."""
        allowed = self._rtol
        rounding = _ROUNDING.get(getattr(operation, "compute_dtype", "float32"))
        if rounding is not None:
            self.half_precision = True
            allowed = max(allowed, rounding)
        error = _difference(expected, actual)
        if not error <= allowed:
            name = f"{prefix}{operation.name} ({type(operation).__name__})"
            self.differences.append(f"{name}: {error:.2g} of the largest output")


def _check_equal(model: Any, converted: tf_keras.Model, converter: _Converter, rtol: float) -> None:
    """Raise a ValueError that names the layers unless both models compute the same.

    One input is of the size of normalized images, one of bytes, for models that scale themselves.
    """
    function = _function(model)
    rng = np.random.default_rng(0)
    for magnitude in (1.0, 255.0):
        inputs = [_draw(tensor, magnitude, rng) for tensor in function.inputs]
        comparison = _Comparison(converter, rtol)
        comparison.run(model, inputs)
        values = {id(t): x for t, x in zip(function.inputs, inputs, strict=True)}
        argument = _fill(function._inputs_struct, values)
        error = _difference(model(argument, training=False), converted(argument, training=False))
        if comparison.differences:
            raise ValueError(
                f"model {model.name!r} computes something else in tf_keras; layers that differ:\n  "
                + "\n  ".join(comparison.differences)
            )
        # Half precision adds up over the layers to more than any fixed bound; each was compared.
        if not comparison.half_precision and not error <= rtol:
            raise ValueError(
                f"model {model.name!r} differs by {error:.2g} of its largest output after the "
                f"conversion, though no layer does by more than {rtol:.2g}. If its call is its "
                "own Python code, build it as keras.Model(inputs, outputs); if rounding adds up "
                f"in it and that is acceptable, give rtol={2 * error:.1g}."
            )


def _draw(tensor: Any, magnitude: float, rng: np.random.Generator) -> Any:
    """Return a random input, from 0 to `magnitude`; open sizes are 1 image of 96x96."""
    batch, *shape = tensor.shape
    full = (batch or 1, *(n or 96 for n in shape))
    # Drawn as float64 and rounded down for integer inputs.
    return keras.ops.cast(rng.uniform(0, magnitude, full), tensor.dtype)


def _difference(expected: Any, actual: Any) -> float:
    """Return the largest difference, relative to each output's largest magnitude."""
    worst = 0.0
    pairs = zip(keras.tree.flatten(expected), keras.tree.flatten(actual), strict=True)
    for one, other in pairs:
        a, b = (np.asarray(keras.ops.cast(x, "float64")) for x in (one, other))
        if a.shape != b.shape:
            return float("inf")
        finite = np.isfinite(a)
        if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
            return float("inf")
        if finite.any():
            a, b = a[finite], b[finite]
            worst = max(worst, float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-6)))
    return worst


def _function(model: Any) -> Any:
    """Return the graph of a Functional or built Sequential model.

    Raises:
        UnsupportedError: If it has none.
    """
    if isinstance(model, keras.Sequential):
        if model._functional is None:
            raise UnsupportedError("it is not built: call build(input_shape) or add an Input layer")
        return model._functional
    if not hasattr(model, "_nodes_by_depth"):
        raise UnsupportedError(
            "it is a subclassed model, whose call is Python code: build it from layers, "
            "keras.Model(inputs, outputs)"
        )
    return model


def _nodes(function: Any) -> Iterator[Any]:
    """Return the calls of layers in a graph, each behind those that its inputs come from."""
    for depth in sorted(function._nodes_by_depth, reverse=True):
        for node in function._nodes_by_depth[depth]:
            if not node.is_input:
                yield node


def _keywords(node: Any) -> dict[str, Any]:
    """Return the keyword arguments that a layer's counterpart is called with.

    Raises:
        UnsupportedError: If there are some besides `training=False`.
    """
    operation = node.operation
    given = {key: value for key, value in node.arguments.kwargs.items() if value is not None}
    training = given.pop("training", None)
    parameter = _training_parameter(operation)
    if parameter is not None and training == parameter.default:
        # Keras 3 records the default of a call that says nothing: False for Dropout, True for
        # random augmentation.
        training = None
    if training:
        raise UnsupportedError("it is called with training=True; leave that to fit")
    if given or (isinstance(operation, keras.layers.Layer) and len(node.arguments.args) != 1):
        extra = ", ".join(sorted(given)) or "more than one argument"
        raise UnsupportedError(f"it is called with {extra}, which does not cross")
    return {"training": False} if training is False else {}


def _training_parameter(layer: Any) -> inspect.Parameter | None:
    """Return the parameter `training` of a layer's call, if it has one."""
    return inspect.signature(layer.call).parameters.get("training")


def _fill(structure: Any, values: Mapping[int, Any]) -> Any:
    """Replace the symbolic Keras 3 tensors of a structure."""
    return keras.tree.map_structure(
        lambda x: values[id(x)] if isinstance(x, keras.KerasTensor) else x, structure
    )
