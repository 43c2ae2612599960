"""Interval bounds of a quantized Keras 3 network, differentiable, to train with."""

from __future__ import annotations

from typing import Any

from keras import ops

from tfdq.keras3.graph import Graph, Node
from tfdq.keras3.layer_kinds import QuantizedDense, QuantizedLayer, QuantizedSoftmax
from tfdq.keras3.layer_kinds.base import Box


def check_boxes(graph: Graph) -> None:
    """Check that every layer of a graph has an interval rule.

    Raises:
        ValueError: naming all layers without one, or for several inputs or outputs.
    """
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise ValueError(
            "a model with one input and one output is bounded, this has "
            f"{len(graph.inputs)} and {len(graph.outputs)}"
        )
    layers = [node.layer for node in _bounded(graph) if node.inputs]
    in_float = [layer.name for layer in layers if not isinstance(layer, QuantizedLayer)]
    if in_float:
        raise ValueError(
            f"layers in float have no interval rule: {', '.join(map(repr, in_float))}; train what "
            "tfdq.quantize_model returns, made without skip"
        )
    unbounded = [layer for layer in layers if not layer.has_interval_rule]
    if unbounded:
        named = ", ".join(f"{layer.name!r} ({type(layer).__name__})" for layer in unbounded)
        raise ValueError(
            f"no interval rule for {named}: replace them in the float model by layers that have "
            "one (convolution, dense, BatchNormalization, ReLU, pooling, sums, Concatenate), or "
            "train without intervals"
        )


def ends_in_softmax(graph: Graph) -> bool:
    """Tell whether a model's output is probabilities."""
    return isinstance(graph.nodes[graph.outputs[0]].layer, QuantizedSoftmax)


def propagate_box(graph: Graph, low: Any, high: Any) -> dict[int, Box]:
    """Bound the result of every layer before a last softmax, over a box of inputs.

    Kernels count with their integers, BatchNorm with its moving statistics, results rounded to
    their grids; rounding is monotone, and its straight-through gradient passes.

    Args:
        graph: a graph that `check_boxes` takes.
        low: the box' smallest inputs, float32 ``(n, ...)``.
        high: its largest inputs.

    Returns:
        Lowest and highest integers with their step, by node index.
    """
    boxes: dict[int, Box] = {graph.inputs[0]: (low, high)}
    for node in _bounded(graph):
        if node.inputs:
            taken = [boxes[index] for index in node.inputs]
            boxes[node.index] = node.layer.interval(taken if node.layer.merges else taken[0])
    return boxes


def worst_logits(graph: Graph, boxes: dict[int, Box], labels: Any) -> Any:
    """Return logits at least as bad for the labels as any in the box.

    Behind a last dense layer the differences to the label's logit are bounded one by one, before
    they are rounded, which is tighter than the logits' own bounds; the label's is then 0.

    Args:
        graph: the graph.
        boxes: from `propagate_box`.
        labels: int ``(n,)``.

    Returns:
        float32 ``(n, classes)``.
    """
    index = graph.outputs[0]
    if ends_in_softmax(graph):
        (index,) = graph.nodes[index].inputs
    node = graph.nodes[index]
    (low, step), (high, _) = boxes[node.index]
    picked = ops.one_hot(labels, low.shape[-1], dtype="float32")
    layer = node.layer
    if not (isinstance(layer, QuantizedDense) and layer.activation == "linear"):
        return (picked * low + (1.0 - picked) * high) * step
    (below, step), (above, _) = boxes[node.inputs[0]]
    kernel, slope, offset = layer.at_rest(step)
    columns = ops.transpose(kernel) * slope[:, None]
    # A compiler may fuse the subtraction so that the label's own row is not quite 0, and |.| has
    # another slope there.
    others = 1.0 - picked[:, :, None]
    difference = (columns[None] - ops.matmul(picked, columns)[:, None]) * others
    shift = offset[None] - ops.matmul(picked, offset[:, None])
    middle = ops.einsum("nkf,nf->nk", difference, (above + below) / 2.0)
    spread = ops.einsum("nkf,nf->nk", ops.abs(difference), (above - below) / 2.0)
    return middle + spread + shift


def _bounded(graph: Graph) -> list[Node]:
    """Return the nodes in order, up to the output; without a softmax there."""
    last = graph.outputs[0]
    return list(graph.nodes[: last if ends_in_softmax(graph) else last + 1])
