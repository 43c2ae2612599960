"""What of a float model quantization cannot keep: each is refused by name, before any work."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import tensorflow as tf
import tf_keras

from tfdq.quantization.graph import Graph, Node

_REMEDY = """Quantized layers compute in float32. Build the model in float32, with its weights:
  tf_keras.mixed_precision.set_global_policy("float32"); float_model = build()  # your own code
  float_model.set_weights(model.get_weights())"""


def check_precision(layers: Iterable[Any]) -> None:
    """Check that all layers, of tf_keras or of Keras 3, compute in float32 and hold float32.

    Integer inputs are allowed.

    Raises:
        ValueError: some do not; they are listed, with what to do.
    """
    wrong = []
    for layer in layers:
        kinds = {tf.as_dtype(d) for d in (layer.compute_dtype, layer.variable_dtype) if d}
        if any(kind.is_floating and kind != tf.float32 for kind in kinds):
            wrong.append(f"{layer.name!r} ({_policy(layer)})")
    if wrong:
        raise ValueError(
            f"{len(wrong)} layer(s) do not compute in float32: {', '.join(wrong)}. {_REMEDY}"
        )


def _policy(layer: Any) -> str:
    policy = getattr(layer, "dtype_policy", None)
    return str(getattr(policy, "name", None) or layer.compute_dtype)


def layers_with_types(graph: Graph) -> list[tf_keras.layers.Layer]:
    """Return the layers of a graph whose type policy matters, each once."""
    found = {id(node.layer): node.layer for node in graph.nodes}
    return [layer for layer in found.values() if layer.compute_dtype is not None]


def check_calls_are_graphs(model: tf_keras.Model) -> None:
    """Check that a model and those nested in it compute their graph, and add no losses to it.

    Raises:
        ValueError: one does something else in a method of its own, or has a loss of its own.
    """
    for inner in model._flatten_layers():
        if not isinstance(inner, tf_keras.Model):
            continue
        if _overrides_call(inner):
            raise ValueError(
                f"model {inner.name!r} ({type(inner).__name__}) has a call method of its own, "
                "which a copy of its layers would lose: express what it does as layers, or, if "
                "the method only passes the call on, give "
                "tf_keras.Model(model.inputs, model.outputs)"
            )
        if inner._callable_losses or inner._losses:
            raise ValueError(
                f"model {inner.name!r} has a loss of its own (add_loss), which a copy of its "
                "layers would lose: add it to the quantized model, "
                "quantized.add_loss(lambda: ...), and give quantize_model the model without it"
            )


def _overrides_call(model: tf_keras.Model) -> bool:
    """Tell whether a class of the user's stands between the call and Keras' own classes."""
    for kind in type(model).__mro__:
        if "call" in vars(kind):
            return kind.__module__.split(".")[0] not in ("tf_keras", "tfdq")
    return False


def what_no_copy_keeps(node: Node) -> str | None:
    """Return what neither a quantized layer nor a float copy of this one would keep, or None."""
    layer = node.layer
    if type(layer).__name__ in ("AddLoss", "AddMetric"):
        return (
            "a loss or metric added to the float model; add it to the quantized one, "
            "quantized.add_loss or add_metric, and give quantize_model the model without it"
        )
    if any(not _is_of_a_weight(loss) for loss in layer._callable_losses):
        return "a loss of its own (add_loss); add it to the quantized model instead"
    if layer.dynamic:
        return "dynamic=True, which runs outside of a graph"
    if node.frozen_by is not None and layer.trainable and layer.weights:
        return (
            f"it is trainable inside the model {node.frozen_by!r}, which is not, so Keras trains "
            "none of its weights: set trainable of the model (which sets that of its layers), "
            "then that of the layers"
        )
    return None


def _is_of_a_weight(loss: Any) -> bool:
    """Tell whether a layer's loss is the regularizer of a weight, which Keras wraps twice."""
    inner = loss.args[0] if isinstance(loss, functools.partial) and loss.args else None
    return isinstance(inner, functools.partial) and inner.func.__name__ == "_loss_for_variable"


def what_no_quantized_layer_keeps(node: Node) -> str | None:
    """Return what is said in the call or the layer and has no quantized form, or None."""
    layer, call = node.layer, node.call
    others = sorted(node.other_arguments())
    if others:
        return f"called with {', '.join(others)}, which its quantized form does not take"
    first = node.first_argument()
    parts = list(first) if isinstance(first, (list, tuple)) else [first]
    if [id(part) for part in parts] != [id(tensor) for tensor in call.keras_inputs]:
        return "called on something else than tensors of the model, one or a list of them"
    if any(getattr(tensor, "_keras_mask", None) is not None for tensor in call.keras_inputs):
        return "its input carries a mask (Masking or mask_zero), which integers do not"
    if layer.activity_regularizer is not None:
        return (
            "an activity_regularizer, which acts on a result that quantization fuses or rounds; "
            "leave it out, and add the term to the loss of the quantized model"
        )
    return None


def mode_problem(node: Node, has_mode: bool) -> str | None:
    """Return what is wrong with the mode that a quantized layer's call is held in, or None.

    Args:
        node: the call.
        has_mode: whether the layer computes otherwise in training than in inference.
    """
    if not has_mode or node.training in (None, False):
        return None
    return (
        f"called with training={node.training!r}; only training=False is kept, since an integer "
        "file infers: leave the argument out"
    )


def norm_problem(norm: tf_keras.layers.BatchNormalization) -> str | None:
    """Return which argument of a BatchNormalization has no quantized form, or None."""
    for name in ("renorm", "virtual_batch_size", "adjustment"):
        if getattr(norm, name, None):
            return f"{name}={getattr(norm, name)!r}; only the plain normalization is quantized"
    return None


def input_problem(layer: tf_keras.layers.InputLayer) -> str | None:
    """Return what kind of input a quantized model cannot have, or None."""
    for name in ("sparse", "ragged", "optional"):
        if getattr(layer, name, False):
            return f"a {name} input; only dense ones are quantized"
    return None
