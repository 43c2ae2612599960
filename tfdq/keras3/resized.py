"""A trained quantized model for inputs of another size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras import ops

from tfdq.description import Shape
from tfdq.keras3.graph import Graph, check_input_shape, read_graph
from tfdq.keras3.layer_kinds import QuantizedLayer

_OF_THE_SIZE = "deployed_"
"""How the names of constants begin that `QuantizedModel.seal` makes anew."""


def resized(model: Any, shape: Sequence[int]) -> Any:
    """Return a quantized model with the same weights and ranges for inputs of another size.

    Args:
        model: a `QuantizedModel` of one input; it stays as it is.
        shape: of an input, without the batch; the channels stay.

    Raises:
        ValueError: the model has several inputs or another number of channels, or layers that are
            made for the size that it has (all of them are listed).
    """
    graph = read_graph(model)
    declared = graph.nodes[graph.inputs[0]].shape
    shape = check_input_shape(graph, shape, (*(None for _ in declared[1:-1]), declared[-1]))
    config = model.get_config()
    for entry in config["layers"]:
        # Layers are built for the sizes that reach them.
        entry.pop("build_config", None)
        if entry["class_name"] == "InputLayer":
            entry["config"]["batch_shape"] = (None, *shape)
    result = type(model).from_config(config)
    _check(graph, read_graph(result), shape)
    for old, new in zip(model.variables, result.variables, strict=True):
        if old.shape == new.shape:
            new.assign(ops.convert_to_numpy(old))
    return result


def _check(before: Graph, after: Graph, shape: Sequence[int]) -> None:
    """Raise if layers do not do with another size what they do with theirs."""
    problems = []
    for old, new in zip(before.nodes, after.nodes, strict=True):
        if not old.inputs:
            continue
        was, found = (
            [graph.nodes[index].shape for index in node.inputs]
            for graph, node in ((before, old), (after, new))
        )
        fits = _same_variables(old.layer, new.layer)
        if fits and isinstance(old.layer, QuantizedLayer):
            fits = old.layer.fits(was[0], found[0])
            if old.layer.merges:
                fits = fits and _go_together(old.layer, found)
        if not fits:
            problems.append(f"{old.layer.name!r} ({_sizes(was)} would be {_sizes(found)})")
    if problems:
        raise ValueError(
            f"with input_shape={tuple(shape)} layers get sizes that they are not made for: "
            f"{', '.join(problems)}; train the model with quantize_model(input_shape="
            f"{tuple(shape)}), or use layers of any size, such as GlobalAveragePooling2D and "
            "Reshape with -1"
        )


def _same_variables(old: Any, new: Any) -> bool:
    """Return whether the variables of a layer, those made anew apart, have the shapes of those."""
    return all(
        mine.shape == theirs.shape
        for mine, theirs in zip(
            getattr(old, "variables", ()), getattr(new, "variables", ()), strict=True
        )
        if not mine.name.startswith(_OF_THE_SIZE)
    )


def _sizes(shapes: Sequence[Shape]) -> str:
    """Return shapes without the batch as text."""
    return " and ".join(str(shape[1:]) for shape in shapes)


def _go_together(layer: QuantizedLayer, shapes: Sequence[Shape]) -> bool:
    """Return whether a layer can merge tensors of such shapes."""
    joined = getattr(layer, "axis", None)
    rank = len(shapes[0])
    sizes = [
        {shape[axis] for shape in shapes}
        for axis in range(1, rank)
        if joined is None or axis != joined % rank
    ]
    return all(len(found if joined is not None else found - {1}) <= 1 for found in sizes)
