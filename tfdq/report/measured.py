"""What a report measures itself, on a few images, where a run has not."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tfdq.either_keras import is_quantized
from tfdq.experiments.opening import open_integer_file
from tfdq.report.networks import ReportedNetwork
from tfdq.report.page import Picture
from tfdq.which_keras import is_keras3_model

if TYPE_CHECKING:
    from tflite_export.ir.graph import IntegerGraph

STRENGTHS = (2, 4, 8, 16)
ATTACKS = ("fgsm", "pgd")


def with_figures(
    network: ReportedNetwork, x: np.ndarray, y: np.ndarray, seed: int
) -> ReportedNetwork:
    """Return a network that was not measured with the figures of two quick attacks.

    Args:
        network: returned as it is where it has figures.
        x: images in [0, 1].
        y: labels.
        seed: of the attacks.
    """
    if network.figures:
        return network
    found = _attacked(network.target, x, y, seed)
    if network.model is not None and network.file is not None:
        from tfdq.robustness import as_target

        target = as_target(str(network.file), limits=network.limits)
        # Gradients come from the network that the file was made of.
        found["tflite"] = _attacked(target, x, y, seed, network.model)
    return replace(network, figures=found)


def _attacked(
    model: Any, x: np.ndarray, y: np.ndarray, seed: int, surrogate: Any = None
) -> dict[str, Any]:
    from tfdq.robustness import evaluate

    report = evaluate(
        {"model": model},
        x,
        y,
        attacks=list(ATTACKS),
        epsilons=[strength / 255 for strength in STRENGTHS],
        seed=seed,
        surrogates=None if surrogate is None else {"model": surrogate},
        progress=False,
    )
    return {
        "clean": _bits(report.model("model").correct),
        "attacks": {
            str(strength): {
                attack: _bits(report.survived("model", strength / 255, attack))
                for attack in ATTACKS
            }
            for strength in STRENGTHS
        },
    }


def _bits(mask: np.ndarray) -> str:
    return "".join("1" if value else "0" for value in mask)


def amplification(
    network: ReportedNetwork, x: np.ndarray, y: np.ndarray, seed: int
) -> tuple[Any, Any]:
    """Return the layers and the mean relative distance at each, under FGSM at 8/255."""
    known = network.figures.get("amplification")
    if known:
        strength = max(known, key=float)
        return known[strength]["layers"], known[strength]["distance"]
    from tfdq.robustness import attack, error_amplification

    moved = attack("fgsm", network.target, x, y, 8 / 255, early_stop=False, seed=seed)
    measured = network.model
    if measured is None and network.file is not None:
        measured = open_integer_file(network.file, twin=True, limits=network.limits)
        x, moved = network.as_taken(x), network.as_taken(moved)
    curve = error_amplification({network.name: measured}, x, moved, progress=False).curves[0]
    return curve.layers, curve.distance


def deployed_spectra(network: ReportedNetwork) -> dict[str, np.ndarray]:
    """Return the singular values of each layer's reshaped kernel as it is deployed."""
    from tflite_export.twin.integer_twin import graph_of

    of_keras3 = is_keras3_model(network.model)
    if network.model is None or (of_keras3 and is_quantized(network.model)):
        return _integer_spectra(graph_of(network.model or network.file, network.limits))
    if of_keras3:
        return _float_spectra(network.model)
    found = {}
    for layer in network.model.layers:
        inner = getattr(layer, "layer", layer)
        kernel = getattr(inner, "kernel", None)
        if kernel is None:
            continue
        if hasattr(layer, "penalized_kernel"):
            kernel = layer.penalized_kernel("deployed")
        matrix = np.asarray(kernel, np.float64).reshape(-1, kernel.shape[-1])
        found[inner.name] = np.linalg.svd(matrix, compute_uv=False)
    return found


def layers_without_spectra(network: ReportedNetwork) -> list[str]:
    """Return the layers of a float model of Keras 3 that `deployed_spectra` has to leave out."""
    model = network.model
    if not is_keras3_model(model) or is_quantized(model):
        return []
    return [
        layer.name
        for layer in _layers(model)
        if not _matrices(layer)
        and any(len(weight.shape) > 1 for weight in getattr(layer, "weights", ()))
    ]


def _float_spectra(model: Any) -> dict[str, np.ndarray]:
    """Return the singular values of the kernels of a float model of Keras 3, models inside it too.

    Of a kernel that takes each channel alone they are those of all channels together.
    """
    found: dict[str, np.ndarray] = {}
    for layer in _layers(model):
        for part, matrices in _matrices(layer).items():
            # Layers of two models inside may have one name.
            name, again = f"{layer.name}{part}", 2
            while name in found:
                name, again = f"{layer.name}{part} ({again})", again + 1
            found[name] = np.sort(np.linalg.svd(matrices, compute_uv=False).ravel())[::-1]
    return found


def _layers(model: Any) -> list[Any]:
    """Return the layers of a model of Keras 3 in the order they are called, each once."""
    import keras

    from tfdq.keras3.graph import read_graph

    try:
        layers = [node.layer for node in read_graph(model).nodes]
    except ValueError:
        # The call of a subclassed model is Python code: the order is that of its attributes.
        every = model._flatten_layers(include_self=False)
        layers = [layer for layer in every if not isinstance(layer, keras.Model)]
    return list({id(layer): layer for layer in layers}.values())


def _matrices(layer: Any) -> dict[str, np.ndarray]:
    """Return a layer's reshaped kernels, ``(..., rows, columns)``, by what tells them apart."""
    import keras

    def whole(kernel: Any) -> np.ndarray:
        values = keras.ops.convert_to_numpy(kernel).astype(np.float64)
        return values.reshape(-1, values.shape[-1])

    def each_channel(kernel: Any) -> np.ndarray:
        values = keras.ops.convert_to_numpy(kernel).astype(np.float64)
        *_, channels, multiplier = values.shape
        return values.reshape(-1, channels, multiplier).swapaxes(0, 1)

    of = keras.layers
    if isinstance(layer, (of.SeparableConv1D, of.SeparableConv2D)):
        return {
            " (depthwise)": each_channel(layer.depthwise_kernel),
            " (pointwise)": whole(layer.pointwise_kernel),
        }
    if isinstance(layer, (of.DepthwiseConv1D, of.DepthwiseConv2D)):
        return {"": each_channel(layer.kernel)}
    if isinstance(layer, (of.Dense, of.Conv1D, of.Conv2D, of.Conv3D)):
        return {"": whole(layer.kernel)}
    if isinstance(layer, (of.Conv1DTranspose, of.Conv2DTranspose, of.Conv3DTranspose)):
        # Output channels come before those of the input.
        return {"": whole(keras.ops.swapaxes(layer.kernel, -1, -2))}
    return {}


def _integer_spectra(graph: IntegerGraph) -> dict[str, np.ndarray]:
    from tflite_export.ir.affine import constant_values

    found = {}
    for operator in graph.operators:
        if operator.kind in ("CONV_2D", "FULLY_CONNECTED"):
            # Output channels come first.
            kernel = graph.tensors[operator.inputs[1]]
            matrix = constant_values(kernel).reshape(kernel.shape[0], -1)
            name = graph.tensors[operator.outputs[0]].name
            found[name] = np.linalg.svd(matrix, compute_uv=False)
    return found


def pictures(
    network: ReportedNetwork, x: np.ndarray, y: np.ndarray, strength: float, count: int, seed: int
) -> tuple[tuple[Picture, ...], ...]:
    """Return clean, adversarial and difference images of the first ones that are broken.

    Args:
        network: the network that is attacked by PGD.
        x: images in [0, 1].
        y: labels.
        strength: in 1/255.
        count: how many at most.
        seed: of the attack.
    """
    from tfdq.robustness import as_target, run_attack

    result = run_attack("pgd", network.target, x, y, strength / 255, seed=seed)
    predicted = as_target(network.target).predict(result.x_adv)
    rows = []
    for index in np.flatnonzero(result.correct & result.success)[:count]:
        difference = (result.x_adv[index] - x[index]) * (127.5 / strength) + 0.5
        told = f"class {y[index]}"
        rows.append(
            (
                Picture(to_png(x[index]), f"clean: {told}", f"Clean test image of {told}"),
                Picture(
                    to_png(result.x_adv[index]),
                    f"adversarial: class {predicted[index]}",
                    f"The same image after the attack, taken for class {predicted[index]}",
                ),
                Picture(
                    to_png(difference),
                    "difference, enlarged",
                    "Difference of the two, enlarged around grey",
                ),
            )
        )
    return tuple(rows)


def to_png(image: np.ndarray) -> bytes:
    """Return an image in [0, 1], (height, width, 1 or 3), as a PNG file."""
    import matplotlib.image

    levels = np.clip(np.rint(np.asarray(image) * 255), 0, 255).astype(np.uint8)
    if levels.shape[-1] == 1:
        levels = np.repeat(levels, 3, axis=-1)
    buffer = io.BytesIO()
    matplotlib.image.imsave(buffer, levels, format="png")
    return buffer.getvalue()


def transfer(networks: Sequence[ReportedNetwork], x: np.ndarray, y: np.ndarray, seed: int) -> Any:
    """Return the transfer matrix of the networks, with their files as further victims."""
    from tfdq.robustness import transfer_matrix

    return transfer_matrix(
        {network.name: network.target for network in networks},
        x,
        y,
        eps=8 / 255,
        victims={f"{s.name} (file)": s.file for s in networks if s.model and s.file},
        seed=seed,
        progress=False,
    )
