"""Linear bounds against brute force: every input of a tiny network's box is run."""

from dataclasses import replace

import numpy as np
import pytest

from tests.certificates.integer_networks import NETWORKS, GraphBuilder
from tests.certificates.test_intervals import whole_box
from tfdq.certificates import linear_bounds
from tfdq.certificates.interval_certificate import input_box
from tfdq.certificates.intervals import propagate
from tfdq.certificates.linear_bounds import LinearBounds
from tflite_export.ir.graph import IntegerGraph
from tflite_export.ops import OPERATORS
from tflite_export.runtime.reference import run


def deep(seed: int) -> IntegerGraph:
    builder = GraphBuilder((2, 2, 1), seed).conv(4).conv(3, activation="NONE").conv(4)
    return builder.flatten().dense(4).dense(3, 0.03).graph


LINEAR = {"deep": deep, **{name: NETWORKS[name] for name in ("plain", "residual", "averaged")}}


def least_differences(graph: IntegerGraph, low, high, label: int, kernels: str) -> np.ndarray:
    """Return the smallest difference of the label's logit and each other one, by trying all."""
    outputs = run(graph, [whole_box(low[0], high[0])], kernels)[graph.outputs[0]].astype(int)
    return (outputs[:, [label]] - outputs).min(axis=0)


@pytest.mark.parametrize("kernels", ["xnnpack", "builtin", "reference"])
@pytest.mark.parametrize("network", LINEAR)
def test_no_input_is_below_the_bound_of_a_margin(network: str, kernels: str) -> None:
    tighter = 0
    for seed in range(6):
        graph = LINEAR[network](seed)
        linear = LinearBounds(graph, kernels)
        assert linear.reaches_logits
        x = np.random.default_rng(seed).integers(0, 256, (1, 2, 2, 1)).astype(np.float32) / 255
        low, high = input_box(graph, x, 2 / 255)
        plain = linear.relax(low, high)
        for known in (None, linear.tightened(low, high)):
            found = linear.relax(low, high, known)
            for label in range(3):
                exact = least_differences(graph, low, high, label, kernels)
                bound = linear.margins(found, np.array([label])).least[0]
                others = np.arange(3) != label
                assert np.all(bound[others] <= exact[others])
                bottom, top = (
                    side[0].astype(int) for side in plain.bounds.values[graph.outputs[0]]
                )
                tighter += int(np.sum(bound[others] > (bottom[label] - top)[others]))
    # A mean is not substituted, and nothing is left to gain behind it.
    assert tighter > 0 or network == "averaged"


@pytest.mark.parametrize("network", LINEAR)
def test_tightened_intervals_hold_every_value(network: str) -> None:
    narrower = 0
    for seed in range(6):
        graph = LINEAR[network](seed)
        linear = LinearBounds(graph)
        x = np.random.default_rng(seed).integers(0, 256, (1, 2, 2, 1)).astype(np.float32) / 255
        low, high = input_box(graph, x, 2 / 255)
        bounds = linear.relax(low, high, linear.tightened(low, high)).bounds.values
        before = propagate(graph, low, high).values
        for index, value in run(graph, [whole_box(low[0], high[0])]).items():
            assert np.all(value >= bounds[index][0])
            assert np.all(value <= bounds[index][1])
            narrower += int(np.sum(bounds[index][1] < before[index][1]))
    # The others have no second operator with weights, or nothing undecided before it.
    assert narrower > 0 or network != "deep"


def test_gradients_are_the_products_of_weights_behind_what_is_not_clipped() -> None:
    """A network of two layers, differentiated by hand."""
    graph = GraphBuilder((2, 2, 1), 0).flatten().dense(4, 0.02).dense(3, 0.05).graph
    linear = LinearBounds(graph)
    points = np.random.default_rng(0).integers(-128, 128, (5, 2, 2, 1)).astype(np.int8)
    found, scores = linear.gradient(points, np.full(5, 1), np.full(5, 2))
    values = run(graph, [points])
    np.testing.assert_array_equal(scores, values[graph.outputs[0]])
    first, second = graph.operators[1:]
    scale = []
    for operator in (first, second):
        source, weight, _ = (graph.tensors[i] for i in operator.inputs)
        factor = source.scale * weight.quantization.scale[0]
        scale.append(weight.data * (factor / graph.tensors[operator.outputs[0]].scale))
    hidden, outputs = (values[operator.outputs[0]].astype(int) for operator in (first, second))
    free = np.abs(outputs) < 127
    rows = [f[1] * scale[1][1] - f[2] * scale[1][2] for f in free]
    expected = [(row * (np.abs(h) < 127)) @ scale[0] for row, h in zip(rows, hidden, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_bound_that_forgets_the_rounding_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the rounding's error the comparison of the first test fails."""
    for kind in ("CONV_2D", "FULLY_CONNECTED"):
        exact = replace(OPERATORS[kind], rounding_error=lambda step: 1e-9)
        monkeypatch.setitem(OPERATORS, kind, exact)
    wrong = 0
    for seed in range(30):
        graph = deep(seed)
        linear = LinearBounds(graph)
        x = np.random.default_rng(seed).integers(0, 256, (1, 2, 2, 1)).astype(np.float32) / 255
        low, high = input_box(graph, x, 1 / 255)
        for label in range(3):
            truth = least_differences(graph, low, high, label, "xnnpack")
            bound = linear.margins(linear.relax(low, high), np.array([label])).least[0]
            others = np.arange(3) != label
            wrong += int(np.sum(bound[others] > truth[others]))
    assert wrong > 0


def test_bounds_in_pieces_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = deep(1)
    linear = LinearBounds(graph)
    low = np.zeros((3, *graph.tensors[graph.inputs[0]].shape[1:]), np.int8)
    high = low + 5
    known = linear.tightened(low[:1], high[:1])
    whole = linear.margins(linear.relax(low, high, known), np.array([0, 1, 2]))
    monkeypatch.setattr(linear_bounds, "_COEFFICIENTS", 1)
    for index, ends in linear.tightened(low[:1], high[:1]).items():
        np.testing.assert_allclose(ends, known[index], rtol=1e-12)
    pieces = linear.margins(linear.relax(low, high, known), np.array([0, 1, 2]))
    np.testing.assert_allclose(pieces.least, whole.least, rtol=1e-12)
    np.testing.assert_allclose(pieces.slope, whole.slope, rtol=1e-12)


def test_what_is_known_at_the_deadline_is_sound() -> None:
    graph = deep(2)
    linear = LinearBounds(graph)
    low = np.zeros((1, *graph.tensors[graph.inputs[0]].shape[1:]), np.int8)
    plain_ranges = linear.relax(low, low + 5).ranges
    for index, ends in linear.tightened(low, low + 5, deadline=0.0).items():
        np.testing.assert_array_equal(ends, plain_ranges[index])
