"""The error amplification effect: how a perturbation grows from layer to layer."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tfdq._extras import explained
from tfdq.either_keras import is_quantized
from tfdq.mistakes import UnknownNameError
from tfdq.robustness.plot_text import plain
from tfdq.robustness.progress import progress_bar
from tfdq.robustness.result_store import write_atomically
from tfdq.which_keras import is_keras3_model

if TYPE_CHECKING:
    import tf_keras
    from matplotlib.figure import Figure

    from tfdq.keras3.graph import Graph as Keras3Graph
    from tfdq.quantization import Graph
    from tflite_export import IntegerTwin

# Layers that only follow: their output takes the place of that of the layer they come after.
_FOLLOWERS = (
    "Activation",
    "BatchNormalization",
    "Dropout",
    "FusedBatchNormalization",
    "FusedReLU",
    "LeakyReLU",
    "ReLU",
    "Relu",
    "Relu6",
)
_MERGES = ("Add", "Average", "ConvexCombination", "FusedAdd")
_PREFIX = "quant_"
_INTEGER_LAYERS = (
    "ADD",
    "CONV_2D",
    "DEPTHWISE_CONV_2D",
    "FULLY_CONNECTED",
    "SUB",
    "TRANSPOSE_CONV",
)


@dataclass(frozen=True)
class DistanceCurve:
    """Relative distances of one model at one strength.

    Attributes:
        model: Name of the model.
        strength: Perturbation size in input units, NaN if it was not said.
        layers: Name of the layer behind each point; "input" is the first.
        distance: Mean over the examples of `||A(x_adv) - A(x)|| / ||A(x)||` at each point.
        deviation: Its standard deviation over the examples.
        examples: Examples that count at each point: those with a non-zero clean activation.
    """

    model: str
    strength: float
    layers: tuple[str, ...]
    distance: tuple[float, ...]
    deviation: tuple[float, ...]
    examples: tuple[int, ...]

    @property
    def amplification(self) -> tuple[float, ...]:
        """Distance at each point divided by that at the input."""
        return tuple(d / self.distance[0] if self.distance[0] else np.nan for d in self.distance)


@dataclass(frozen=True)
class ErrorAmplification:
    """Distance curves of some models, comparable layer by layer.

    Attributes:
        curves: One per model and strength.
    """

    curves: tuple[DistanceCurve, ...]

    def curve(self, model: str, strength: float | None = None) -> DistanceCurve:
        """Return the curve of a model; the strength may be left out if there is one only.

        Raises:
            KeyError: If there is no such curve, or several fit.
        """
        fits = [
            curve
            for curve in self.curves
            if curve.model == model
            and (strength is None or bool(np.isclose(curve.strength, strength)))
        ]
        if len(fits) != 1:
            known = [(c.model, c.strength) for c in self.curves]
            raise UnknownNameError(
                f"{len(fits)} curves fit {model!r} at {strength}; there are {known}"
            )
        return fits[0]

    def to_dict(self) -> dict[str, Any]:
        """Return the curves as plain data."""
        curves = [{**asdict(c), "amplification": c.amplification} for c in self.curves]
        return json.loads(json.dumps({"curves": curves}))

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return the curves as JSON, and write them to `path` if one is given.

        Raises:
            OSError: If the file can't be written.
        """
        text = json.dumps(self.to_dict(), indent=1)
        if path is not None:
            write_atomically(path, text + "\n")
        return text

    def to_markdown(self) -> str:
        """Return one table: a row per curve, a column per depth."""
        longest = max(self.curves, key=lambda curve: len(curve.layers)).layers
        lines = [
            "| model | strength | " + " | ".join(longest) + " |",
            "|" + "---|" * (len(longest) + 2),
        ]
        for curve in self.curves:
            cells = [f"{value:.4f}" for value in curve.distance]
            cells += [""] * (len(longest) - len(cells))
            strength = "" if np.isnan(curve.strength) else f"{curve.strength:.4g}"
            lines.append(f"| {curve.model} | {strength} | " + " | ".join(cells) + " |")
        return "\n".join(lines) + "\n"

    def plot_depth(
        self, path: str | os.PathLike[str] | None = None, strength: float | None = None
    ) -> Figure:
        """Plot the distance against depth, one line per model.

        Args:
            path: Image file to write, or None.
            strength: Which strength; the largest by default.

        Returns:
            The figure.
        """
        from matplotlib.figure import Figure

        strengths = [c.strength for c in self.curves]
        chosen = max(strengths) if strength is None else strength
        plot = Figure(figsize=(7, 4.5), layout="constrained")
        axes = plot.subplots()
        shown = [c for c in self.curves if np.isnan(chosen) or np.isclose(c.strength, chosen)]
        for curve in shown:
            axes.plot(
                range(len(curve.layers)), curve.distance, marker="o", label=plain(curve.model)
            )
        longest = max(shown, key=lambda curve: len(curve.layers)).layers
        axes.set_xticks(
            range(len(longest)),
            [plain(name) for name in longest],
            rotation=60,
            ha="right",
            fontsize=7,
        )
        axes.set(ylabel="mean ||A(x_adv) - A(x)|| / ||A(x)||")
        at = "" if np.isnan(chosen) else f" at eps {chosen:.4g}"
        axes.set_title(f"Error amplification{at}", fontsize=10)
        axes.grid(alpha=0.3)
        axes.legend()
        if path is not None:
            plot.savefig(path, dpi=150)
        return plot

    def plot_strength(self, path: str | os.PathLike[str] | None = None, depth: int = -1) -> Figure:
        """Plot the distance at one depth against the perturbation strength.

        Args:
            path: Image file to write, or None.
            depth: Position on the depth axis; the last (the logits) by default.

        Returns:
            The figure.

        Raises:
            ValueError: If the curves were measured at a single, unnamed strength.
        """
        from matplotlib.figure import Figure

        if any(np.isnan(curve.strength) for curve in self.curves):
            raise ValueError("no strengths were given: pass x_adv as {epsilon: images}")
        plot = Figure(figsize=(6, 4.5), layout="constrained")
        axes = plot.subplots()
        ordered = sorted(self.curves, key=lambda curve: curve.strength)
        for model in dict.fromkeys(curve.model for curve in self.curves):
            own = [curve for curve in ordered if curve.model == model]
            axes.plot(
                [c.strength for c in own],
                [c.distance[depth] for c in own],
                marker="o",
                label=plain(f"{model}, {own[0].layers[depth]}"),
            )
        axes.set(xlabel="perturbation (eps)", ylabel="mean ||A(x_adv) - A(x)|| / ||A(x)||")
        axes.grid(alpha=0.3)
        axes.legend()
        if path is not None:
            plot.savefig(path, dpi=150)
        return plot


def error_amplification(
    models: Mapping[str, tf_keras.Model | IntegerTwin] | tf_keras.Model | IntegerTwin,
    x: np.ndarray,
    x_adv: Any,
    *,
    batch_size: int = 256,
    progress: bool | None = None,
) -> ErrorAmplification:
    r"""Measure how far adversarial activations are from the clean ones, layer by layer.

    `D_l = mean_x ||A_l(x_adv) - A_l(x)||_2 / ||A_l(x)||_2`, `A_l` the activation behind layer l:
    after its BatchNormalization, its ReLU and its quantizer. The depth axis is the same for a float
    model and for the models quantized from it: the input (after its quantizer), then every
    convolution, depthwise convolution, dense layer and residual sum, each with the normalization
    and activation that follow it. In an integer file, and in a quantized Keras 3 model, which at
    inference computes what its file does, these are the operators with weights and the sums, their
    integers in the units of the tensor.

    Args:
        models: `{name: model}`, or one model: models of Keras 3 or tf_keras, float or
            quantization-aware, and `tflite_export.IntegerTwin`.
        x: Clean images, shape (n, ...).
        x_adv: Their adversarial versions: an array like `x`; `{name of model: array}` for a
            white-box attack on each; `{epsilon: array}` or `{epsilon: {name: array}}` for several
            strengths.
        batch_size: Examples per forward pass.
        progress: Show a progress bar on stderr; by default if that is a terminal.

    Returns:
        One curve per model and strength.

    Raises:
        ValueError: If shapes differ, there are no examples, an array holds NaN, or a model is no
            graph of layers.
        KeyError: If `x_adv` lacks a model.

    Source: Lin, Gan, Han, Defensive Quantization, ICLR 2019, section 3 (figure 3).
    """
    named = dict(models) if isinstance(models, Mapping) else {"model": models}
    if not named:
        raise ValueError("models is empty: give {name: model}")
    images = _images(x, "x")
    strengths = _by_strength(x_adv)
    jobs = []
    for strength, name in itertools.product(strengths, named):
        given = strengths[strength]
        if isinstance(given, Mapping) and name not in given:
            raise UnknownNameError(f"x_adv has no images for {name!r}; it has {sorted(given)}")
        moved = _images(given[name] if isinstance(given, Mapping) else given, "x_adv")
        if moved.shape != images.shape:
            raise ValueError(f"x has shape {images.shape} but x_adv {moved.shape}")
        jobs.append((name, strength, moved))
    traced = {name: _activations(model) for name, model in named.items()}
    curves = []
    with progress_bar("error amplification", len(jobs), progress) as advance:
        for name, strength, moved in jobs:
            layers, compute = traced[name]
            curves.append(_curve(name, strength, layers, compute, images, moved, batch_size))
            advance(name)
    return ErrorAmplification(tuple(curves))


def depth_axis(graph: Graph | Keras3Graph) -> list[tuple[str, int]]:
    """Return the points at which a model's activations are compared.

    Args:
        graph: The model as the `read_graph` of its Keras gives it.

    Returns:
        `(name, position)` in the order of the graph: the input first, then every kernel layer and
        merge at the end of the chain of normalizations and activations behind it. The prefix of
        quantized layers is taken off the names.
    """
    takers = graph.consumers()

    def end_of_chain(position: int) -> int:
        while len(takers[position]) == 1:
            follower = graph.nodes[takers[position][0]]
            if type(_inner(follower.layer)).__name__ not in _FOLLOWERS:
                break
            position = follower.index
        return position

    source = graph.inputs[0]
    first = source
    if len(takers[source]) == 1:
        behind = graph.nodes[takers[source][0]]
        if type(behind.layer).__name__ in ("InputQuantizer", "QuantizeLayer"):
            first = behind.index
    points = [("input", first)]
    for node in graph.nodes:
        layer = _inner(node.layer)
        kernel = hasattr(layer, "kernel") or hasattr(layer, "depthwise_kernel")
        if kernel or type(layer).__name__ in _MERGES:
            points.append((layer.name.removeprefix(_PREFIX), end_of_chain(node.index)))
    return points


def _inner(layer: Any) -> Any:
    """Return the layer inside a quantize wrapper, or the layer itself."""
    return getattr(layer, "layer", layer)


def _activations(model: Any) -> tuple[tuple[str, ...], Callable[[np.ndarray], list[np.ndarray]]]:
    from tflite_export import IntegerTwin

    if isinstance(model, IntegerTwin):
        return _integer_activations(model)
    if is_keras3_model(model) and is_quantized(model):
        # At inference it computes the integers of its file.
        return _integer_activations(IntegerTwin(model))
    if is_keras3_model(model):
        return _keras3_activations(model)
    try:
        import tensorflow as tf

        from tfdq.quantization import read_graph
        from tfdq.robustness.layer_outputs import LayerOutputs
    except ModuleNotFoundError as error:
        raise explained(error, "the error amplification of a tf_keras model") from error

    points = depth_axis(read_graph(model))
    outputs = LayerOutputs(model, [position for _, position in points])
    compiled = tf.function(outputs, reduce_retracing=True, autograph=False)

    def compute(images: np.ndarray) -> list[np.ndarray]:
        found = compiled(tf.constant(images))
        return [t.numpy().reshape(len(images), -1).astype(np.float64) for t in found]

    return tuple(name for name, _ in points), compute


def _keras3_activations(
    model: Any,
) -> tuple[tuple[str, ...], Callable[[np.ndarray], list[np.ndarray]]]:
    from keras import ops

    from tfdq.keras3.graph import read_graph

    graph = read_graph(model)
    if len(graph.inputs) != 1:
        raise ValueError(f"{model.name!r} has {len(graph.inputs)} inputs; one is needed")
    points = depth_axis(graph)
    nodes = graph.nodes[: max(position for _, position in points) + 1]

    def compute(images: np.ndarray) -> list[np.ndarray]:
        values = {graph.inputs[0]: ops.convert_to_tensor(images)}
        for node in nodes:
            if node.inputs:
                values[node.index] = node.infer(values)
        found = (ops.convert_to_numpy(values[position]) for _, position in points)
        return [value.reshape(len(images), -1).astype(np.float64) for value in found]

    return tuple(name for name, _ in points), compute


def _integer_activations(
    twin: IntegerTwin,
) -> tuple[tuple[str, ...], Callable[[np.ndarray], list[np.ndarray]]]:
    from tflite_export.files.cost import samples_at_once
    from tflite_export.ir.affine import dequantize
    from tflite_export.twin.integer_twin import as_array

    graph, first = twin.graph, twin.graph.inputs[0]
    if graph.tensors[first].quantization is None:
        first = next(op.outputs[0] for op in graph.operators if first in op.inputs)
    # Of each byte of an activation the twin holds eight.
    at_once = samples_at_once(graph, 256, 8)
    points = [("input", first)]
    for operator in graph.operators:
        if operator.kind in _INTEGER_LAYERS:
            points.append((graph.tensors[operator.outputs[0]].name, operator.outputs[0]))

    def compute(images: np.ndarray) -> list[np.ndarray]:
        parts = []
        for start in range(0, len(images), at_once):
            found = twin.activations(images[start : start + at_once])
            parts.append([dequantize(as_array(found[i]), graph.tensors[i]) for _, i in points])
        values = (np.concatenate(part) for part in zip(*parts, strict=True))
        return [value.reshape(len(images), -1).astype(np.float64) for value in values]

    return tuple(name for name, _ in points), compute


def _curve(
    name: str,
    strength: float,
    layers: tuple[str, ...],
    compute: Callable[[np.ndarray], list[np.ndarray]],
    clean: np.ndarray,
    moved: np.ndarray,
    batch_size: int,
) -> DistanceCurve:
    sums = np.zeros((3, len(layers)))
    for at in range(0, len(clean), batch_size):
        part = slice(at, at + batch_size)
        pairs = zip(compute(clean[part]), compute(moved[part]), strict=True)
        for index, (before, after) in enumerate(pairs):
            size = np.linalg.norm(before, axis=1)
            counts = size > 0
            ratio = np.linalg.norm(after - before, axis=1)[counts] / size[counts]
            sums[:, index] += len(ratio), ratio.sum(), (ratio**2).sum()
    count = np.maximum(sums[0], 1)
    mean = np.where(sums[0] > 0, sums[1] / count, np.nan)
    deviation = np.sqrt(np.maximum(sums[2] / count - mean**2, 0))
    return DistanceCurve(
        name,
        strength,
        layers,
        tuple(map(float, mean)),
        tuple(map(float, deviation)),
        tuple(map(int, sums[0])),
    )


def _images(x: Any, argument: str) -> np.ndarray:
    images = np.asarray(x, np.float32)
    if images.ndim < 2 or len(images) == 0:
        raise ValueError(f"{argument} must be a batch of images, got shape {images.shape}")
    if not np.isfinite(images).all():
        raise ValueError(f"{argument} holds NaN or infinite values")
    return images


def _by_strength(x_adv: Any) -> dict[float, Any]:
    """Sort out the forms of `x_adv`: keys that are numbers are strengths."""
    if isinstance(x_adv, Mapping) and not x_adv:
        raise ValueError("x_adv is empty")
    if isinstance(x_adv, Mapping) and not any(isinstance(key, str) for key in x_adv):
        return {float(key): value for key, value in x_adv.items()}
    return {float("nan"): x_adv}
