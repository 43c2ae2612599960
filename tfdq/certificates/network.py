"""The Lipschitz constant of a network: layer by layer, composed along its graph, and searched."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tf_keras

from tfdq.certificates.layer_maps import (
    KernelChoice,
    activation_constant,
    check_kernel_choice,
    check_known_call,
    layer_activation,
    linear_map,
    lipschitz_constant,
)
from tfdq.certificates.layer_report import LayerRow, LipschitzReport, compose
from tfdq.certificates.linear_maps import Array
from tfdq.certificates.local_search import local_lipschitz
from tfdq.certificates.norms import measure
from tfdq.certificates.singular import singular_values
from tfdq.penalties.kernel_layers import has_kernel, unwrap
from tfdq.quantization.graph import Graph, Node, read_graph
from tfdq.quantization.layers import batch_norm_affine
from tflite_export.ir.limits import DEFAULT, Limits


def lipschitz_report(
    model: Any,
    x: Any = None,
    kernel: KernelChoice = "fake_quantized",
    tolerance: float = 1e-5,
    certify: bool = True,
    spectra: bool = False,
    search_steps: int = 10,
    limits: Limits = DEFAULT,
) -> LipschitzReport:
    """Measure a network's layers and bound its L2 Lipschitz constant from both sides.

    Above: the layers' proven bounds are composed along the graph (a sum adds its branches'
    constants, a convex combination weighs them, a concatenation adds their squares). A BatchNorm
    directly after a convolution is measured together with it. Below: the norm of the network's
    Jacobian at images found by gradient search.

    Rounding to a grid is no Lipschitz map; a fake-quantized network is measured as the network
    that its straight-through gradient sees, with the kernels that ship.

    Args:
        model: a built Functional or Sequential tf_keras model with one output, float or made by
            ``tfdq.quantize_model``; or an integer network (a ``.tflite`` path or bytes, or an
            `IntegerGraph`), whose kernels are the integers times their scales. For the latter the
            other arguments but ``tolerance`` and ``limits`` do not apply.
        x: images ``(n, height, width, channels)`` that the search starts from; None: no search.
        kernel: of quantized layers, ``"fake_quantized"`` or ``"float"``.
        tolerance: relative residual of the measured norms.
        certify: prove the bounds; without it ``upper`` is infinite and only ``estimate`` counts.
        spectra: also keep the singular values of each layer.
        search_steps: steps of the search for the lower bound.
        limits: what a ``.tflite`` file may cost. Its norms are measured in as many steps, 20 to
            300, as the limits allow; the bounds do not depend on that.

    Raises:
        ValueError: the model is not a graph of known layers, an image size is not fixed, it has
            several outputs, or a file costs more than its limits.
    """
    check_kernel_choice(kernel)
    if not isinstance(model, tf_keras.Model):
        from tfdq.certificates.integer_network import integer_report
        from tfdq.certificates.norm_cost import affordable_iterations
        from tflite_export.ir.decision import without_decision
        from tflite_export.twin.integer_twin import graph_of

        integers = without_decision(graph_of(model, limits))
        most = affordable_iterations(model, integers, limits)
        return integer_report(integers, tolerance=tolerance, max_iterations=most)
    graph = read_graph(model)
    if len(graph.outputs) != 1:
        raise ValueError(
            f"model {model.name!r} has {len(graph.outputs)} outputs; a network with one is measured"
        )
    measured = _Measurement(graph, kernel, tolerance, certify, spectra)
    rows = [measured.row(node) for node in graph.nodes]
    lower = None
    if x is not None:
        lower = float(np.max(local_lipschitz(model, x, search_steps)))
    output = graph.outputs[0]
    return LipschitzReport(
        tuple(rows),
        rows[output].cumulative if certify else math.inf,
        measured.estimates[output],
        lower,
        kernel,
        measured.spectra,
    )


class _Measurement:
    """The rows made so far, and the estimates that go with them."""

    def __init__(
        self, graph: Graph, kernel: KernelChoice, tolerance: float, certify: bool, spectra: bool
    ) -> None:
        self.graph = graph
        self.kernel: KernelChoice = kernel
        self.tolerance = tolerance
        self.certify = certify
        self.keep_spectra = spectra
        self.folded = _batch_norms_to_fold(graph)
        self.bounds: list[float] = []
        self.estimates: list[float] = []
        self.spectra: dict[str, Array] = {}

    def row(self, node: Node) -> LayerRow:
        """Measure one node and compose it with what comes before it."""
        check_known_call(node.layer, node.call)
        inner = unwrap(node.layer)
        reshaped: float | None = None
        stacked = isinstance(inner, tf_keras.layers.Concatenate)
        sigmas: tuple[float, ...]
        uppers: tuple[float, ...]
        if has_kernel(node.layer):
            sigma, upper, reshaped = self._measure_kernel(node)
            sigmas, uppers = (sigma,), (upper,)
        elif len(node.inputs) > 1 or hasattr(inner, "coefficients"):
            uppers = sigmas = branch_constants(node.layer, len(node.inputs))
        else:
            shape = self.graph.nodes[node.inputs[0]].shape[1:] if node.inputs else ()
            uppers = sigmas = (lipschitz_constant(node.layer, shape),) * len(node.inputs)
        shown = max(sigmas, default=1.0)
        if node.index in self.folded.values():
            uppers = sigmas = (1.0,)
        bound = compose(uppers, [self.bounds[i] for i in node.inputs], stacked)
        self.bounds.append(bound)
        self.estimates.append(compose(sigmas, [self.estimates[i] for i in node.inputs], stacked))
        return LayerRow(
            node.layer.name,
            type(inner).__name__,
            node.inputs,
            shown,
            uppers,
            reshaped,
            bound if self.certify else self.estimates[-1],
            stacked,
        )

    def _measure_kernel(self, node: Node) -> tuple[float, float, float]:
        scale = None
        if node.index in self.folded:
            scale = batch_norm_affine(self.graph.nodes[self.folded[node.index]].layer)[0]
        shape = self.graph.nodes[node.inputs[0]].shape[1:]
        convolution = linear_map(node.layer, self.kernel, shape, scale)
        norm = measure(convolution, self.tolerance, self.certify)
        if self.keep_spectra:
            self.spectra[node.layer.name] = singular_values(convolution)[0]
        slope = activation_constant(layer_activation(node.layer))
        return norm.sigma * slope, norm.upper * slope, norm.reshaped


def branch_constants(layer: Any, branches: int) -> tuple[float, ...]:
    """Return the factor of each branch of a layer that joins several.

    Raises:
        ValueError: the layer is not Add, Subtract, Average, Concatenate or ConvexCombination.
    """
    check_known_call(layer)
    inner = unwrap(layer)
    if hasattr(inner, "coefficients"):
        return tuple(abs(float(a)) for a in inner.coefficients())
    if isinstance(inner, tf_keras.layers.Average):
        return (1.0 / branches,) * branches
    joins = (tf_keras.layers.Add, tf_keras.layers.Subtract, tf_keras.layers.Concatenate)
    if isinstance(inner, joins):
        return (1.0,) * branches
    raise ValueError(
        f"layer {layer.name!r} ({type(inner).__name__}) joins {branches} inputs in a way whose "
        "Lipschitz constant is not known; known are Add, Subtract, Average, Concatenate and "
        "ConvexCombination"
    )


def _batch_norms_to_fold(graph: Graph) -> dict[int, int]:
    """Return which BatchNorm follows which convolution or dense layer, and nothing else does."""
    pairs = {}
    takers = graph.consumers()
    for node in graph.nodes:
        if not has_kernel(node.layer) or len(takers[node.index]) != 1:
            continue
        follower = graph.nodes[takers[node.index][0]]
        linear = _is_linear(node.layer)
        plain = isinstance(follower.layer, tf_keras.layers.BatchNormalization) and (
            list(follower.layer.axis) == [len(node.shape) - 1]
        )
        if linear and plain and node.index not in graph.outputs:
            pairs[node.index] = follower.index
    return pairs


def _is_linear(layer: Any) -> bool:
    """Tell whether a layer with a kernel has no activation of its own."""
    inner = unwrap(layer)
    return (
        layer_activation(layer) == "linear"
        and getattr(inner, "fused_activation", "linear") == "linear"
    )
