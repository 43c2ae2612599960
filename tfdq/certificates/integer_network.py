"""The norms of a deployed network: its integer kernels times their scales, and its rounding."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tfdq.certificates.intervals import check_intervals
from tfdq.certificates.layer_report import LayerRow, LipschitzReport, compose
from tfdq.certificates.linear_maps import ConvolutionMap, padding_amounts
from tfdq.certificates.norms import measure
from tfdq.certificates.singular import MOST_ITERATIONS, norm_upper_bound
from tflite_export.ir.graph import IntegerGraph, Tensor
from tflite_export.ops import OPERATORS
from tflite_export.ops.spec import FLOAT32_ERROR, KERNEL_SETS, LinearPart


@dataclass(frozen=True)
class OperatorNorm:
    """The largest factor by which an operator stretches a distance, in real units.

    Attributes:
        sigma: the measured norm; the bound where it was not measured.
        upper: a proven bound.
        reshaped: largest singular value of the reshaped kernel; None without a kernel.
    """

    sigma: float
    upper: float
    reshaped: float | None


@dataclass(frozen=True)
class IntegerNetwork:
    """A deployed network as rows of a report, with what its rounding may add.

    Attributes:
        rows: one for each operator and for the input, in execution order.
        roundings: for each row, the largest L2 distance in real units that its rounding can put
            between two of its outputs, beyond what ``rows`` says.
        tensors: the tensor that each row computes.
    """

    rows: tuple[LayerRow, ...]
    roundings: tuple[float, ...]
    tensors: tuple[int, ...]


def integer_network(
    graph: IntegerGraph,
    kernels: str = "xnnpack",
    tolerance: float | None = 1e-5,
    max_iterations: int = MOST_ITERATIONS,
) -> IntegerNetwork:
    """Measure every operator of an integer graph in real units.

    Args:
        graph: the graph, one input and one output.
        kernels: whose rounding, a key of `tflite_export.ops.spec.KERNEL_SETS`.
        tolerance: relative residual of the measured norms; None: the bounds only, which are what a
            proof needs.
        max_iterations: steps after which the measurement of a norm stops in any case.

    Raises:
        ValueError: an operator is not known, ``kernels`` is unknown, or an image size is open.
    """
    check_intervals(graph)
    if kernels not in KERNEL_SETS:
        raise ValueError(f"kernels is {kernels!r}; known: {', '.join(KERNEL_SETS)}")
    source = graph.inputs[0]
    tensor = graph.tensors[source]
    place = {source: 0}
    rows = [LayerRow(tensor.name, "input", (), 1.0, (), None, 1.0)]
    # floats that are fed as such are not rounded
    rounded = 0.0 if tensor.dtype == "float32" else 0.5 + FLOAT32_ERROR
    roundings = [_spread(tensor, rounded)]
    tensors = [source]
    for result, operator in graph.activations():
        moving = [i for i in operator.inputs if i in place]
        inputs = tuple(place[i] for i in moving)
        output = graph.tensors[result]
        spec = OPERATORS[operator.kind]
        operands = [graph.tensors[i] for i in operator.inputs if i >= 0]
        step = spec.step(operator, operands, output, kernels, operator.outputs.index(result))
        norm = measured_norm(spec.norm(step), tolerance, max_iterations)
        uppers = (norm.upper,) * len(inputs)
        bound = compose(uppers, [rows[i].cumulative for i in inputs], spec.stacked)
        name = operator.label or output.name
        place[result] = len(rows)
        tensors.append(result)
        rows.append(
            LayerRow(
                name,
                operator.kind,
                inputs,
                norm.sigma,
                uppers,
                norm.reshaped,
                bound,
                spec.stacked,
            )
        )
        roundings.append(_spread(output, spec.rounding_error(step)))
    return IntegerNetwork(tuple(rows), tuple(roundings), tuple(tensors))


def integer_report(
    graph: IntegerGraph,
    kernels: str = "xnnpack",
    tolerance: float = 1e-5,
    max_iterations: int = MOST_ITERATIONS,
) -> LipschitzReport:
    """Return the report of an integer graph; see `tfdq.certificates.lipschitz_report`.

    The bound is that of the network without rounding, which is what its integers stand for.
    """
    network = integer_network(graph, kernels, tolerance, max_iterations)
    estimates: list[float] = []
    for row in network.rows:
        factors = (row.sigma,) * len(row.inputs)
        estimates.append(compose(factors, [estimates[i] for i in row.inputs], row.stacked))
    output = network.tensors.index(graph.outputs[0])
    return LipschitzReport(
        network.rows, network.rows[output].cumulative, estimates[output], None, "integer"
    )


def measured_norm(
    norm: float | LinearPart, tolerance: float | None, max_iterations: int = MOST_ITERATIONS
) -> OperatorNorm:
    """Return the norm of an operator: a constant, or measured on its linear map.

    Args:
        norm: what `tflite_export.ops` says of the operator.
        tolerance: relative residual of the measurement; None: bound it only.
        max_iterations: steps after which the measurement stops in any case.
    """
    if not isinstance(norm, LinearPart):
        return OperatorNorm(norm, norm, None)
    if tolerance is None:
        upper, _ = norm_upper_bound(convolution_of(norm))
        return OperatorNorm(upper, upper, None)
    found = measure(convolution_of(norm), tolerance, max_iterations=max_iterations)
    return OperatorNorm(found.sigma, found.upper, found.reshaped)


def convolution_of(part: LinearPart) -> ConvolutionMap:
    """Return the linear map of an operator with its padding in numbers."""
    axes = zip(part.shape, part.kernel.shape, part.strides, part.dilation, strict=False)
    amounts = [padding_amounts(part.padding, *axis) for axis in axes]
    return ConvolutionMap(
        part.kernel, part.shape, part.strides, (amounts[0], amounts[1]), part.dilation, part.groups
    )


def _spread(tensor: Tensor, error: float) -> float:
    """Return how far apart errors of ``error`` steps can put two tensors, in L2."""
    if error == 0.0:
        return 0.0
    return 2 * error * float(tensor.scale) * math.sqrt(math.prod(tensor.shape[1:]))
