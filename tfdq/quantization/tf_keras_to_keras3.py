"""tf_keras models to Keras 3 models: the opposite of `from_keras3`.

`to_keras3` reads the graph of a tf_keras model, makes a Keras 3 layer for each of its layers, calls
those as the model calls its own, copies the weights, and compares the two models, layer by layer
and end to end, before it returns.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tf_keras

from tfdq.mistakes import WrongTypeError
from tfdq.quantization.graph import Graph, Node, read_graph
from tfdq.quantization.keras3_layers import SAME_NAMED, UnsupportedError
from tfdq.which_keras import is_tf_keras_model

# Arguments that only tf_keras knows, with the value at which leaving them out changes nothing.
_ANY = object()
_TF_KERAS_ONLY: dict[str, Any] = {
    "batch_input_shape": _ANY,
    "fused": _ANY,
    "renorm": False,
    "renorm_clipping": None,
    "renorm_momentum": _ANY,
    "virtual_batch_size": None,
    "adjustment": None,
    "groups": 1,
}
# Both have them, and compute another thing.
_RENORM = ("renorm", "renorm_clipping", "renorm_momentum")
# An activation is known by its function; hard_sigmoid has another slope there.
_ACTIVATIONS = (
    *("elu", "exponential", "gelu", "linear", "mish", "relu", "selu", "sigmoid", "softmax"),
    *("softplus", "softsign", "tanh"),
)


def to_keras3(model: Any, rtol: float = 1e-5) -> keras.Model:
    """Convert a Functional or Sequential tf_keras model to Keras 3.

    Layer names, weights, `trainable` flags, shared layers, several inputs and outputs (also in
    dictionaries) and `training=False` calls are kept; nested models are flattened. The result is
    not compiled; the model passed in is not changed.

    Args:
        model: A built tf_keras model in float, not quantized.
        rtol: Largest difference allowed of the two models' outputs, and of every layer's, on
            random inputs, relative to the largest magnitude.

    Returns:
        A Functional Keras 3 model.

    Raises:
        TypeError: If it is no tf_keras model.
        ValueError: If the model is not built, Keras 3 runs on another backend than TensorFlow, some
            layers can't cross (all are listed), or outputs differ.
    """
    if not is_tf_keras_model(model):
        raise WrongTypeError(
            f"expected a tf_keras model, got {type(model).__module__}.{type(model).__name__}"
        )
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            f"Keras runs on the {keras.backend.backend()} backend: convert in a process with "
            "KERAS_BACKEND=tensorflow and save the result with model.save('model.keras'); that "
            "file is read on every backend."
        )
    graph = read_graph(model)
    layers = _counterparts(model, graph)
    converted = _replayed(model, graph, layers)
    for node in graph.nodes:
        if node.inputs:
            _copy_state(node.layer, layers[id(node.layer)])
    _check_equal(model, converted, graph, layers, rtol)
    return converted


def _counterparts(model: Any, graph: Graph) -> dict[int, Any]:
    """Return an unbuilt Keras 3 layer for each layer, by its id.

    Raises:
        ValueError: Some have none; all of them are listed.
    """
    found: dict[int, Any] = {}
    problems: dict[str, None] = {}
    names: dict[str, int] = {}
    for node in graph.nodes:
        layer = node.layer
        if not node.inputs:
            continue
        try:
            if node.training or node.other_arguments():
                extra = ", ".join(node.other_arguments()) or "training=True"
                raise UnsupportedError(f"it is called with {extra}, which does not cross")
            if names.setdefault(layer.name, id(layer)) != id(layer):
                raise UnsupportedError("another layer, of a nested model, has the same name")
            if node.frozen_by is not None and layer.trainable_weights:
                raise UnsupportedError(f"it is trainable inside the model {node.frozen_by!r}")
            if id(layer) not in found:
                found[id(layer)] = _converted(layer)
        except UnsupportedError as error:
            problems[f"{layer.name} ({type(layer).__name__}): {error}"] = None
    if problems:
        raise ValueError(
            f"model {model.name!r} can't be converted to Keras 3:\n  " + "\n  ".join(problems)
        )
    return found


def _converted(layer: Any) -> Any:
    """Return an unbuilt Keras 3 layer with the name and the configuration of a tf_keras layer."""
    kind = type(layer).__name__
    if kind not in SAME_NAMED or type(layer) is not getattr(tf_keras.layers, kind, None):
        raise UnsupportedError(
            "no Keras 3 layer is known to compute the same; build it from layers of tf_keras.layers"
        )
    if getattr(layer, "activity_regularizer", None) is not None:
        raise UnsupportedError("an activity_regularizer does not cross")
    accepted = _accepted(kind)
    arguments: dict[str, Any] = {}
    for key, value in layer.get_config().items():
        if key.endswith("_initializer"):
            continue
        if key == "alpha" and kind == "LeakyReLU":
            arguments["negative_slope"] = value
        elif key in accepted and key not in _RENORM:
            arguments[key] = _value(layer, key, value)
        elif key in _TF_KERAS_ONLY:
            if _TF_KERAS_ONLY[key] is not _ANY and value != _TF_KERAS_ONLY[key]:
                raise UnsupportedError(f"Keras 3 has no {key}={value!r}")
        elif value is not None and key != "dtype":
            raise UnsupportedError(f"Keras 3 has no {key}={value!r}")
    arguments["dtype"] = layer.dtype_policy.name if hasattr(layer, "dtype_policy") else layer.dtype
    return getattr(keras.layers, kind)(**arguments)


def _accepted(kind: str) -> set[str]:
    """Return the arguments a Keras 3 layer takes, its base classes' included."""
    accepted = {"name", "trainable"}
    for base in getattr(keras.layers, kind).__mro__:
        if "__init__" in vars(base):
            accepted |= set(inspect.signature(base.__init__).parameters)
    return accepted - {"self", "args", "kwargs", "dtype", "activity_regularizer"}


def _value(layer: Any, key: str, value: Any) -> Any:
    """Return one argument's value as Keras 3 takes it."""
    if key.endswith("activation"):
        return _activation(getattr(layer, key))
    for what, module in (("regularizer", keras.regularizers), ("constraint", keras.constraints)):
        if key.endswith(f"_{what}") and value is not None:
            return _namesake(getattr(layer, key), module, what)
    if not isinstance(value, list):
        return value
    # tf_keras holds a BatchNormalization's axis as a list of its own kind.
    return value[0] if key == "axis" and len(value) == 1 else list(value)


def _activation(function: Any) -> str:
    """Return the name of Keras 3's activation for one of tf_keras."""
    for name in _ACTIVATIONS:
        if function is getattr(tf_keras.activations, name):
            return name
    if function in (tf_keras.activations.swish, tf.nn.silu):
        return "silu"
    if function in (tf.nn.relu, tf.nn.relu6):
        return "relu" if function is tf.nn.relu else "relu6"
    name = getattr(function, "__qualname__", type(function).__name__)
    raise UnsupportedError(f"the activation {name} has no counterpart")


def _namesake(own: Any, module: Any, what: str) -> Any:
    """Return Keras 3's object of the same class name."""
    kind = type(own)
    home = getattr(tf_keras, f"{what}s")
    if kind is not getattr(home, kind.__name__, None) or not hasattr(module, kind.__name__):
        raise UnsupportedError(f"the {what} {kind.__name__} has no counterpart")
    config = {name: _plain(value) for name, value in own.get_config().items()}
    return getattr(module, kind.__name__)(**config)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, (np.generic, np.ndarray)) else value


def _replayed(model: Any, graph: Graph, layers: dict[int, Any]) -> keras.Model:
    """Call the counterparts as the model calls its layers; returns the model they make."""
    tensors: dict[int, Any] = {}
    for index in graph.inputs:
        node = graph.nodes[index]
        batch, *shape = node.shape
        tensors[index] = keras.Input(
            tuple(shape), batch_size=batch, dtype=node.layer.dtype, name=node.layer.name
        )
    for node in graph.nodes:
        if node.inputs:
            tensors[node.index] = _call(node, layers, [tensors[i] for i in node.inputs])
    inputs = [tensors[index] for index in graph.inputs]
    outputs = [tensors[index] for index in graph.outputs]
    return keras.Model(
        tf.nest.pack_sequence_as(model._nested_inputs, inputs),
        tf.nest.pack_sequence_as(model._nested_outputs, outputs),
        name=model.name,
    )


def _call(
    node: Node, layers: dict[int, Any], sources: Sequence[Any], inference: bool = False
) -> Any:
    """Call the counterpart of a node's layer."""
    layer = layers[id(node.layer)]
    held = node.training is False or inference
    takes = "training" in inspect.signature(layer.call).parameters
    return layer(node.structured(sources), **({"training": False} if held and takes else {}))


def _copy_state(original: Any, counterpart: Any) -> None:
    """Copy the weights and the `trainable` flag of a layer."""
    weights = original.get_weights()
    own = [w for w in counterpart.weights if "seed_generator" not in w.path]
    shapes, wanted = [w.shape for w in weights], [tuple(w.shape) for w in own]
    if shapes != wanted:
        raise ValueError(
            f"layer {original.name!r} ({type(original).__name__}) has weights of shapes {shapes}, "
            f"but its Keras 3 counterpart {wanted}."
        )
    for variable, value in zip(own, weights, strict=True):
        variable.assign(value)
    if isinstance(counterpart, keras.layers.Normalization):
        # It computes with tensors derived from the weights, which this refreshes.
        counterpart.finalize_state()
    counterpart.trainable = original.trainable


def _check_equal(
    model: Any, converted: keras.Model, graph: Graph, layers: dict[int, Any], rtol: float
) -> None:
    """Raise a ValueError that names the layers unless both models compute the same.

    One input is of the size of normalized images, one of bytes, for models that scale themselves.
    """
    rng = np.random.default_rng(0)
    for magnitude in (1.0, 255.0):
        inputs = [_draw(graph.nodes[index], magnitude, rng) for index in graph.inputs]
        values = dict(zip(graph.inputs, inputs, strict=True))
        differing = []
        for node in graph.nodes:
            if not node.inputs:
                continue
            sources = [values[i] for i in node.inputs]
            values[node.index] = node.infer(sources)
            error = _difference(values[node.index], _call(node, layers, sources, inference=True))
            if not error <= rtol:
                kind = type(node.layer).__name__
                differing.append(f"{node.layer.name} ({kind}): {error:.2g} of the largest output")
        if differing:
            raise ValueError(
                f"model {model.name!r} computes something else in Keras 3; layers that differ:\n  "
                + "\n  ".join(differing)
            )
        given = tf.nest.pack_sequence_as(model._nested_inputs, inputs)
        found = tf.nest.flatten(converted(given, training=False))
        wanted = [values[index] for index in graph.outputs]
        error = max(_difference(a, b) for a, b in zip(wanted, found, strict=True))
        if not error <= rtol:
            raise ValueError(
                f"model {model.name!r} differs by {error:.2g} of its largest output after the "
                f"conversion, though no layer does by more than {rtol:.2g}; if rounding adds up in "
                f"it and that is acceptable, give rtol={2 * error:.1g}."
            )


def _draw(node: Node, magnitude: float, rng: np.random.Generator) -> tf.Tensor:
    """Return a random input, from 0 to `magnitude`; open sizes are 1 image of 96x96."""
    batch, *shape = node.shape
    full = (batch or 1, *(n or 96 for n in shape))
    return tf.cast(rng.uniform(0, magnitude, full), node.layer.dtype)


def _difference(expected: Any, actual: Any) -> float:
    """Return the largest difference, relative to the largest magnitude expected."""
    a, b = (np.asarray(value, np.float64) for value in (expected, actual))
    if a.shape != b.shape:
        return float("inf")
    return float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-6))
