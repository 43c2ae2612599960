"""Norm and rounding error of every operator that a file may hold, against what it computes."""

import dataclasses

import numpy as np
import pytest

from tests.certificates.integer_networks import INPUT_SCALE, GraphBuilder, plain
from tests.tflite_export.graphs import GRAPHS, Draw, feeds, grid, skip_if_missing
from tfdq import certificates
from tfdq.certificates.integer_network import OperatorNorm, integer_network, measured_norm
from tfdq.certificates.interval_certificate import interval_certificate
from tfdq.certificates.intervals import check_intervals, propagate
from tfdq.certificates.layer_report import compose
from tfdq.certificates.margin import lipschitz_certificate, tie_margin
from tflite_export.files.validate import check_graph
from tflite_export.files.write import write
from tflite_export.ir.affine import dequantize
from tflite_export.ir.graph import (
    DTYPES,
    INTEGER_RANGES,
    Elementwise,
    IntegerGraph,
    Operator,
    Quantization,
    Softmax,
    Tensor,
)
from tflite_export.ops import OPERATORS
from tflite_export.ops.spec import OperatorSpec, Step
from tflite_export.runtime.reference import run

KERNELS = ("xnnpack", "builtin", "reference-2.14")


def steep_softmax(seed):
    graph = GRAPHS["softmax"](seed)
    graph.operators[0] = dataclasses.replace(graph.operators[0], options=Softmax(7.0))
    return graph


def signed_product(seed):
    """A product with factors of both signs and a zero point of their own."""
    draw = Draw(seed)
    source = draw.value("x", (-1, 4, 4, 5))
    factors = draw.rng.integers(-128, 128, (1, 1, 1, 5)).astype(np.int8)
    constant = draw.constant("m", factors, grid(float(draw.rng.uniform(0.01, 2.0)), -3), "int8")
    reach = draw.scale_of(source) * draw.scale_of(constant) * 40
    output = draw.value("y", (-1, 4, 4, 5), reach)
    return draw.done("MUL", (source, constant), output, Elementwise())


CASES = {**GRAPHS, "steep_softmax": steep_softmax, "signed_product": signed_product}
del CASES["arg_max"]  # positions have no distance


def step_of(graph: IntegerGraph, kernels: str) -> Step:
    (operator,) = graph.operators
    operands = [graph.tensors[index] for index in operator.inputs if index >= 0]
    output = graph.tensors[operator.outputs[0]]
    return OPERATORS[operator.kind].step(operator, operands, output, kernels)


def spec_of(step: Step) -> OperatorSpec:
    return OPERATORS[step.operator.kind]


def norm_of(step: Step) -> OperatorNorm:
    return measured_norm(spec_of(step).norm(step), 1e-5)


def real(graph: IntegerGraph, index: int, values: np.ndarray) -> np.ndarray:
    tensor = graph.tensors[index]
    values = values if tensor.dtype == "float32" else dequantize(values, tensor)
    return values.astype(np.float64).reshape(len(values), -1)


def moved(graph: IntegerGraph, values: list[np.ndarray], rng: np.random.Generator, kind: int):
    """Inputs at a distance: everywhere at random, in one entry, or all to one side."""
    result = []
    for index, value in zip(graph.inputs, values, strict=True):
        tensor = graph.tensors[index]
        low, high = INTEGER_RANGES.get(tensor.dtype, (-10, 10))
        other = rng.integers(low, high + 1, value.shape).astype(DTYPES[tensor.dtype])
        if kind == 1:
            mask = np.zeros(value.shape, bool).reshape(len(value), -1)
            mask[np.arange(len(value)), rng.integers(0, mask.shape[1], len(value))] = True
            other = np.where(mask.reshape(value.shape), other, value)
        if kind == 2:
            other = np.broadcast_to(other.reshape(-1)[:1], value.shape)
        result.append(other.astype(value.dtype))
    return result


def test_an_operator_that_is_not_known_is_refused_by_name() -> None:
    assert {case(0).operators[0].kind for case in CASES.values()} == set(OPERATORS) - {"ARG_MAX"}
    strange = plain(0)
    strange.operators.append(Operator("COS", strange.outputs, (0,)))
    for check in (check_intervals, integer_network):
        with pytest.raises(ValueError, match="operator COS, which computes 'input'"):
            check(strange)


def test_positions_are_certified_before_they_are_taken() -> None:
    graph = GRAPHS["arg_max"](0)
    for check in (check_intervals, integer_network):
        with pytest.raises(ValueError, match="operator ARG_MAX, which computes 'y'"):
            check(graph)
    step = step_of(graph, "xnnpack")
    with pytest.raises(ValueError, match="positions have no distance"):
        spec_of(step).norm(step)
    values = feeds(graph, 1, 0)
    with pytest.raises(ValueError, match="'y': the order of positions means nothing"):
        spec_of(step).interval(step, [(value, value) for value in values])


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("name", CASES)
def test_norm_and_rounding_are_never_below_what_is_measured(name, kernels) -> None:
    """Distances that the integers go, against norm times distance plus what roundings may add."""
    steepest = 0.0
    skip_if_missing(CASES[name](0), kernels)
    for seed in range(3):
        graph = CASES[name](seed)
        check_graph(graph)
        step = step_of(graph, kernels)
        rule, norm = spec_of(step), norm_of(step)
        assert norm.sigma <= norm.upper
        error = rule.rounding_error(step)
        shape = step.output.shape[1:]
        slack = 2 * error * float(step.output.scale if error else 0) * np.sqrt(np.prod(shape))
        rng = np.random.default_rng(seed)
        first = feeds(graph, 20, seed)
        for kind in range(3):
            second = moved(graph, first, rng, kind)
            ends = [real(graph, graph.outputs[0], run(graph, x, kernels)[graph.outputs[0]])
                    for x in (first, second)]  # fmt: skip
            distance = np.linalg.norm(ends[0] - ends[1], axis=1)
            apart = [
                np.linalg.norm(real(graph, i, a) - real(graph, i, b), axis=1)
                for i, a, b in zip(graph.inputs, first, second, strict=True)
            ]
            for sample, found in enumerate(distance):
                before = [float(a[sample]) for a in apart]
                most = compose((norm.upper,) * len(before), before, rule.stacked)
                assert found <= most * (1 + 1e-6) + slack + 1e-6
                if most > slack:
                    steepest = max(steepest, found / most)
    assert steepest > 0.02 or name in ("softmax", "steep_softmax", "l2_normalization")


def test_the_norm_of_a_direction_is_reached_where_vectors_are_short() -> None:
    graph = GRAPHS["l2_normalization"](0)
    source = graph.tensors[graph.inputs[0]]
    vectors = np.full((2, *source.shape[1:]), source.zero_point, np.int8)
    vectors[1, 0] += 1 if source.zero_point < 127 else -1
    first, second = real(graph, graph.outputs[0], run(graph, [vectors])[graph.outputs[0]])
    found = np.linalg.norm(first - second) / float(source.scale)
    assert found == pytest.approx(norm_of(step_of(graph, "xnnpack")).upper, rel=0.01)


@pytest.mark.parametrize("kernels", KERNELS)
def test_rounding_errors_enclose_the_distance_from_exact_arithmetic(kernels) -> None:
    """Float64 on the dequantized operands, for the operators whose real result is one line."""

    def softmax(graph, x):
        scores = np.exp(graph.operators[0].options.beta * (x - x.max(axis=-1, keepdims=True)))
        return scores / scores.sum(axis=-1, keepdims=True)

    exact = {
        "add": lambda graph, a, b: a + b,
        "difference": lambda graph, *x: np.subtract(*in_order(graph, x)),
        "sum_of_two": lambda graph, *x: np.add(*in_order(graph, x)),
        "product_of_two": lambda graph, *x: np.multiply(*in_order(graph, x)),
        "multiply": lambda graph, x: x * constant_of(graph),
        "signed_product": lambda graph, x: x * constant_of(graph),
        "mean": lambda graph, x: x.mean(axis=(1, 2)),
        "softmax": softmax,
        "steep_softmax": softmax,
        "quantize": lambda graph, x: x,
    }

    def constant_of(graph):
        tensor = graph.tensors[graph.operators[0].inputs[1]]
        return (tensor.data.astype(np.float64) - tensor.zero_point) * float(tensor.scale)

    def in_order(graph, values):
        """Both operands, of which one may be a constant."""
        rest = iter(values)
        return [
            next(rest) if graph.tensors[i].data is None else dequantize(t.data, t)
            for i in graph.operators[0].inputs
            for t in [graph.tensors[i]]
        ]

    for name, function in exact.items():
        largest = 0.0
        for seed in range(6):
            graph = CASES[name](seed)
            step = step_of(graph, kernels)
            values = feeds(graph, 30, seed)
            reals = [
                real(graph, i, v).reshape(v.shape)
                for i, v in zip(graph.inputs, values, strict=True)
            ]
            low, high = INTEGER_RANGES["int8"]
            if step.operator.kind in ("ADD", "MUL", "SUB"):
                low, high = operator_range(step)
            output = step.output
            wanted = function(graph, *reals) / float(output.scale) + output.zero_point
            got = run(graph, values, kernels)[graph.outputs[0]]
            error = np.abs(np.clip(wanted, low, high) - got).max()
            assert error <= spec_of(step).rounding_error(step), (name, seed)
            largest = max(largest, error)
        assert largest > 0.45, name


def operator_range(step: Step) -> tuple[int, int]:
    from tflite_export.ir.graph import activation_range

    return activation_range(step.operator.options.activation, step.output)


def product_of_fifty(seed: int = 0) -> IntegerGraph:
    """One pixel pair, times 50, into a dense layer of three classes."""
    builder = GraphBuilder((1, 2, 1), seed)
    graph = builder.graph
    factor = np.full((1, 1, 1, 1), 100, np.int8)
    constant = graph.add_tensor(
        Tensor("fifty", factor.shape, "int8", Quantization.per_tensor(0.5, 0), factor)
    )
    shape, operands = (1, 2, 1), (builder.at, constant)
    builder._result("MUL", operands, Elementwise(), shape, Quantization.per_tensor(50 / 255, -128))
    return builder.flatten().dense(3, 2.0).graph


def test_a_product_with_fifty_counts_fifty_times() -> None:
    graph = product_of_fifty()
    check_graph(graph)
    alone = dataclasses.replace(graph, outputs=(graph.operators[0].outputs[0],))
    alone.operators = graph.operators[:1]
    found = integer_network(alone)
    assert found.rows[1].cumulative == pytest.approx(50.0, rel=1e-6)
    assert found.roundings[1] > 0
    x = np.random.default_rng(0).integers(0, 256, (200, 1, 2, 1)).astype(np.float32) / 255
    certificate = certificates.certify(write(graph), x, np.zeros(200, int), "l2", "lipschitz")
    every = np.stack(np.meshgrid(*[np.arange(-128, 128)] * 2, indexing="ij"), -1).reshape(-1, 2)
    outputs = run(graph, [every.reshape(-1, 1, 2, 1).astype(np.int8)])[graph.outputs[0]]
    classes = outputs.argmax(axis=1)
    reals = (every + 128) * INPUT_SCALE
    for image, radius in zip(x.reshape(-1, 2), certificate.radius, strict=True):
        inside = np.linalg.norm(reals - image, axis=1) <= radius
        assert len(np.unique(classes[inside])) <= 1


def test_a_softmax_is_as_steep_as_its_beta() -> None:
    """Two classes near a tie, where the slope is half of beta: the bound is attained."""
    for beta in (0.25, 1.0, 12.0):
        graph = GRAPHS["softmax"](0)
        graph.operators[0] = dataclasses.replace(graph.operators[0], options=Softmax(beta))
        step = step_of(graph, "xnnpack")
        norm = norm_of(step)
        near = 1e-4 / beta
        logits = np.array([[near, 0.0], [0.0, near]])
        scores = np.exp(beta * logits)
        ends = scores / scores.sum(axis=1, keepdims=True)
        slope = np.linalg.norm(ends[0] - ends[1]) / np.linalg.norm(logits[0] - logits[1])
        assert slope == pytest.approx(norm.sigma, rel=1e-6)
        assert slope <= norm.upper


def test_probabilities_that_tie_are_not_certified() -> None:
    """Logits a tenth apart whose probabilities are one integer: the file answers the first."""
    builder = GraphBuilder((1, 2, 1), 3).flatten().dense(200, 1e-3).softmax()
    graph = builder.graph
    x = np.random.default_rng(0).uniform(0, 1, (20, 1, 2, 1)).astype(np.float32)
    by_file = run(graph, [np.rint(x * 255 - 128).astype(np.int8)])[graph.outputs[0]].argmax(axis=1)
    found = lipschitz_certificate(graph, x, by_file)
    assert found.clean_accuracy == 1.0
    assert found.vacuous
    for classes in (2, 10, 1000):
        margin = tie_margin(1 / 256, 2.0, classes)
        scores = np.exp(2.0 * np.array([margin, *[0.0] * (classes - 1)]))
        probabilities = scores / scores.sum()
        assert (probabilities[0] - probabilities[1]) * 256 == pytest.approx(1.01)
    assert tie_margin(1.0, 1.0, 10) == np.inf


@pytest.mark.parametrize("scale", [0.01, 1.0, 8.0, 500.0])
def test_probabilities_lie_in_their_intervals_whatever_the_scale_of_the_logits(scale) -> None:
    """Exponentials of wide boxes underflow; an interval never becomes NaN."""
    graph = GRAPHS["softmax"](2)
    graph.tensors[0] = dataclasses.replace(
        graph.tensors[0], quantization=Quantization.per_tensor(scale, 0)
    )
    rng = np.random.default_rng(0)
    classes = graph.tensors[0].shape[1]
    low = rng.integers(-128, 1, (30, classes)).astype(np.int8)
    high = (low + rng.integers(0, 128, low.shape)).astype(np.int8)
    bounds = propagate(graph, low, high).values[graph.outputs[0]]
    for _ in range(40):
        inside = rng.integers(low.astype(int), high.astype(int) + 1).astype(np.int8)
        for corner in (inside, np.where(rng.random(low.shape) < 0.05, high, low)):
            values = run(graph, [corner.astype(np.int8)])[graph.outputs[0]]
            assert np.all(values >= bounds[0])
            assert np.all(values <= bounds[1])


def test_float_arithmetic_is_refused() -> None:
    graph = IntegerGraph()
    shape = (-1, 4)
    left, right, output = (graph.add_tensor(Tensor(n, shape, "float32")) for n in "abc")
    graph.operators.append(Operator("ADD", (left, right), (output,), Elementwise()))
    graph.inputs, graph.outputs = (left,), (output,)
    with pytest.raises(ValueError, match="operator ADD, which computes 'c', runs on float32"):
        check_intervals(graph)


def test_a_square_is_as_steep_as_twice_its_largest_entry() -> None:
    """The bound counts both operands; it is attained at the largest integer, up to a step."""
    step = Quantization.per_tensor(0.1, 0)
    square = IntegerGraph([Tensor("x", (-1, 4), "int8", step)])
    square.add_tensor(Tensor("y", (-1, 4), "int8", Quantization.per_tensor(1.5, 0)))
    square.operators.append(Operator("MUL", (0, 0), (1,), Elementwise()))
    square.inputs, square.outputs = (0,), (1,)
    assert integer_network(square).rows[1].cumulative == pytest.approx(2 * 12.8)
    low, high = np.full((1, 4), -128, np.int8), np.full((1, 4), 127, np.int8)
    lowest, highest = propagate(square, low, high).values[1]
    every = run(square, [np.arange(-128, 128, dtype=np.int8).reshape(-1, 4)])[1]
    assert (lowest <= every.min()).all()
    assert (highest == every.max()).all()


def test_the_interval_route_takes_the_product_with_fifty() -> None:
    graph = product_of_fifty(1)
    x = np.random.default_rng(0).integers(0, 256, (4, 1, 2, 1)).astype(np.float32) / 255
    found = interval_certificate(graph, x, np.zeros(4, int), max_steps=2)
    assert np.isfinite(found.radius).all()
