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


def _float_spectra(model: Any) -> dict[str, np.ndarray]:
    """Return the singular values of the kernels of a float model of Keras 3."""
    import keras

    found = {}
    for layer in model.layers:
        if isinstance(layer, (keras.layers.Conv2D, keras.layers.Dense)):
            kernel = keras.ops.convert_to_numpy(layer.kernel).astype(np.float64)
            matrix = kernel.reshape(-1, kernel.shape[-1])
            found[layer.name] = np.linalg.svd(matrix, compute_uv=False)
    return found


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
