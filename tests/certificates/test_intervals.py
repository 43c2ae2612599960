"""Interval certificates against brute force: every input of a tiny network's box is run."""

import itertools

import numpy as np
import pytest

from tests.certificates.integer_networks import INPUT_SCALE, NETWORKS, GraphBuilder, plain
from tfdq.certificates.complete import complete_certificate
from tfdq.certificates.interval_certificate import (
    certify_box,
    input_box,
    interval_certificate,
    predict_classes,
)
from tfdq.certificates.intervals import check_intervals, propagate, robust_classes
from tflite_export.files.write import write
from tflite_export.ir.graph import Elementwise, IntegerGraph, Operator, Quantization, Tensor
from tflite_export.runtime.interpreter import Interpreter
from tflite_export.runtime.reference import run

KERNEL_SETS = ["xnnpack", "builtin", "reference-2.14"]


def whole_box(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return every integer input of one example's box."""
    sides = [np.arange(int(a), int(b) + 1) for a, b in zip(low.ravel(), high.ravel(), strict=True)]
    return np.array(list(itertools.product(*sides)), np.int8).reshape(-1, *low.shape)


def exact_radius(graph: IntegerGraph, x: np.ndarray, largest: int, kernels: str) -> int:
    """Return the largest radius in steps at which every input keeps its class, by trying all."""
    centre = input_box(graph, x[None], 0.0)[0][0]
    outputs = run(graph, [centre[None]], kernels)[graph.outputs[0]]
    label = int(np.argmax(outputs))
    for steps in range(1, largest + 1):
        low, high = (side[0] for side in input_box(graph, x[None], steps * INPUT_SCALE))
        outputs = run(graph, [whole_box(low, high)], kernels)[graph.outputs[0]]
        if np.any(np.argmax(outputs, axis=1) != label):
            return steps - 1
    return largest


def corners(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return the corners of one example's box; the extremes of a single linear layer lie there."""
    choices = np.array(list(itertools.product([False, True], repeat=low.size)))
    return np.where(choices.reshape(-1, *low.shape), high, low)


@pytest.mark.parametrize("kernels", KERNEL_SETS)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("seed", range(4))
def test_every_value_of_every_input_lies_in_its_interval(network, seed, kernels) -> None:
    graph = NETWORKS[network](seed)
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (1, 2, 2, 1)).astype(np.float32) / 255
    low, high = input_box(graph, x, 2 / 255)
    bounds = propagate(graph, low, high, kernels).values
    values = run(graph, [whole_box(low[0], high[0])], kernels)
    touched = 0
    for index, value in values.items():
        bottom, top = bounds[index]
        assert np.all(value >= bottom)
        assert np.all(value <= top)
        touched += int(np.sum(value.min(axis=0) == bottom[0]) + np.sum(value.max(axis=0) == top[0]))
    # Not merely sound: the first layer's bounds are attained.
    first = graph.operators[0].outputs[0]
    np.testing.assert_array_equal(values[first].min(axis=0), bounds[first][0][0])
    np.testing.assert_array_equal(values[first].max(axis=0), bounds[first][1][0])
    assert touched > 0


def radii_and_truth(network: str, seeds: range, kernels: str) -> tuple[np.ndarray, np.ndarray]:
    """Return certified and exact radii, in steps, of random inputs of random networks."""
    certified, exact = [], []
    for seed in seeds:
        graph = NETWORKS[network](seed)
        x = np.random.default_rng(seed).integers(0, 256, (4, 2, 2, 1)).astype(np.float32) / 255
        classes = predict_classes(graph, x, kernels)
        found = interval_certificate(graph, x, classes, max_steps=3, kernels=kernels)
        assert found.clean_accuracy == 1.0
        certified.append(np.rint(found.radius * 255))
        exact.append([exact_radius(graph, image, 3, kernels) for image in x])
    return np.concatenate(certified), np.concatenate(exact)


@pytest.mark.parametrize("kernels", KERNEL_SETS[:2])
@pytest.mark.parametrize("network", NETWORKS)
def test_no_input_within_a_radius_changes_the_class(network, kernels) -> None:
    certified, exact = radii_and_truth(network, range(8), kernels)
    assert np.all(certified <= exact)
    assert np.any(certified > 0)


@pytest.mark.parametrize("kernels", KERNEL_SETS)
def test_every_input_of_a_network_of_two_pixels_agrees(kernels) -> None:
    """All 65,536 inputs are run; certified boxes of 500 of them hold one class only."""
    values = np.arange(-128, 128)
    everything = np.stack(np.meshgrid(values, values, indexing="ij"), -1).reshape(-1, 1, 2, 1)
    reached, tight = 0, 0
    for seed in range(3):
        graph = GraphBuilder((1, 2, 1), seed).conv(4).flatten().dense(3, 0.02).graph
        outputs = run(graph, [everything.astype(np.int8)], kernels)[graph.outputs[0]]
        classes = np.argmax(outputs, axis=1).reshape(256, 256)
        centres = np.random.default_rng(seed).integers(0, 256, (500, 2))
        x = centres.reshape(-1, 1, 2, 1).astype(np.float32) / 255
        found = interval_certificate(
            graph, x, classes[tuple(centres.T)], max_steps=256, kernels=kernels
        )
        assert found.clean_accuracy == 1.0
        for (row, column), radius in zip(centres, np.rint(found.radius * 255), strict=True):
            steps = int(radius)
            box, wider = (
                classes[max(row - n, 0) : row + n + 1, max(column - n, 0) : column + n + 1]
                for n in (steps, steps + 1)
            )
            assert np.all(box == classes[row, column])
            reached += steps > 0
            tight += bool(np.any(wider != classes[row, column]))
    assert reached > 500
    assert tight > 20


def test_wrong_bounds_are_caught(monkeypatch) -> None:
    """The same comparison fails for intervals that are a tenth too narrow."""
    from tflite_export.ops import weighted

    right = weighted.accumulator_box

    def narrowed(step, boxes, accumulate):
        low, high = right(step, boxes, accumulate)
        middle, half = (low + high) / 2, (high - low) / 2
        return np.ceil(middle - 0.9 * half), np.floor(middle + 0.9 * half)

    monkeypatch.setattr(weighted, "accumulator_box", narrowed)
    graph = plain(0)
    x = np.full((1, 2, 2, 1), 0.5, np.float32)
    low, high = input_box(graph, x, 60 / 255)
    bounds = propagate(graph, low, high).values
    values = run(graph, [corners(low[0], high[0])])
    first = graph.operators[0].outputs[0]
    assert np.any(values[first] < bounds[first][0]) or np.any(values[first] > bounds[first][1])


def test_a_radius_a_tenth_too_long_is_caught() -> None:
    """In a one-layer network the bound is exact: a longer radius has a counterexample."""
    hits = 0
    for seed in range(6):
        graph = GraphBuilder((2, 2, 1), seed).flatten().dense(2, 0.02).graph
        x = np.random.default_rng(seed).uniform(0.3, 0.7, (1, 2, 2, 1)).astype(np.float32)
        classes = predict_classes(graph, x)
        found = interval_certificate(graph, x, classes, max_steps=60)
        steps = int(np.rint(found.radius[0] * 255))
        for longer in (steps, int(np.ceil(steps / 0.9)) + 1):
            low, high = (side[0] for side in input_box(graph, x, longer / 255))
            outputs = run(graph, [corners(low, high)])[graph.outputs[0]]
            broken = np.any(np.argmax(outputs, axis=1) != classes[0])
            if longer == steps:
                assert not broken
            elif steps < 60:
                hits += broken
    assert hits >= 3


@pytest.mark.parametrize("network", NETWORKS)
def test_holds_for_the_runtime_itself(network) -> None:
    """The file is written, run by LiteRT on whole boxes, and stays inside the bounds."""
    for seed in range(3):
        graph = NETWORKS[network](seed)
        interpreter = Interpreter(write(graph))
        x = np.random.default_rng(seed).integers(0, 256, (3, 2, 2, 1)).astype(np.float32) / 255
        classes = predict_classes(graph, x)
        for image, label in zip(x, classes, strict=True):
            low, high = input_box(graph, image[None], 2 / 255)
            bounds = propagate(graph, low, high)
            outputs = np.asarray(interpreter.integers(whole_box(low[0], high[0])))
            bottom, top = bounds.values[graph.outputs[0]]
            assert np.all((outputs >= bottom) & (outputs <= top))
            if robust_classes(graph, bounds, np.array([label]))[0]:
                assert np.all(np.argmax(outputs, axis=1) == label)


def test_accumulator_differences_prove_more_than_the_outputs() -> None:
    """The pairwise rule adds certificates, and none that brute force refutes."""
    more = 0
    for seed in range(20):
        graph = plain(seed, scale=0.01)
        x = np.random.default_rng(seed).integers(0, 256, (4, 2, 2, 1)).astype(np.float32) / 255
        classes = predict_classes(graph, x)
        bounds = propagate(graph, *input_box(graph, x, 2 / 255))
        low, high = bounds.values[graph.outputs[0]]
        rows = np.arange(4)
        high[rows, classes] = -128
        plainly = low[rows, classes] > high.max(axis=1)
        pairwise = robust_classes(graph, propagate(graph, *input_box(graph, x, 2 / 255)), classes)
        assert np.all(pairwise >= plainly)
        more += int(np.sum(pairwise & ~plainly))
    assert more > 0


def test_saturated_outputs_tie_and_are_not_certified() -> None:
    """Two logits beyond the end of the output's range are equal on the device."""
    builder = GraphBuilder((2, 2, 1), 0).flatten().dense(2, 1e-5)
    graph = builder.graph
    weights = graph.tensors[graph.operators[-1].inputs[1]]
    weights.data[:] = np.array([[127] * 4, [100] * 4], np.int8)
    x = np.full((1, 2, 2, 1), 0.8, np.float32)
    outputs = run(graph, [input_box(graph, x, 0.0)[0]])[graph.outputs[0]]
    assert outputs[0, 0] == outputs[0, 1] == 127
    assert not certify_box(graph, x, np.array([0]), 0.0)[0]


def test_box_is_exact_at_the_grid_and_cut_to_the_bounds() -> None:
    graph = plain(0)
    x = (np.array([0, 1, 100, 255], np.float32) / 255).reshape(1, 2, 2, 1)
    low, high = input_box(graph, x, 1 / 255)
    np.testing.assert_array_equal(low.ravel(), [-128, -128, -29, 126])
    np.testing.assert_array_equal(high.ravel(), [-127, -126, -27, 127])


def test_a_float_input_is_quantized_inside_the_graph() -> None:
    inner = plain(1)
    graph = IntegerGraph(list(inner.tensors), list(inner.operators), (), inner.outputs)
    outside = graph.add_tensor(Tensor("float", (-1, 2, 2, 1), "float32"))
    graph.inputs = (outside,)
    graph.operators.insert(0, Operator("QUANTIZE", (outside,), (inner.inputs[0],)))
    x = np.random.default_rng(0).uniform(0, 1, (6, 2, 2, 1)).astype(np.float32)
    classes = predict_classes(inner, x)
    np.testing.assert_array_equal(predict_classes(graph, x), classes)
    expected = interval_certificate(inner, x, classes).radius
    np.testing.assert_array_equal(interval_certificate(graph, x, classes).radius, expected)


def test_certificate_counts_only_what_is_correct(tmp_path) -> None:
    graph = plain(0)
    x = np.random.default_rng(0).uniform(0, 1, (8, 2, 2, 1)).astype(np.float32)
    classes = predict_classes(graph, x)
    y = classes.copy()
    y[:4] = (y[:4] + 1) % 3
    seen = []
    found = interval_certificate(graph, x, y, batch_size=3, progress=lambda *p: seen.append(p))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert found.clean_accuracy == 0.5
    right = found.radius[4:]
    for eps in (1 / 255, 3 / 255, 8 / 255):
        assert found.certified_accuracy(eps) == np.sum(right >= eps - 1e-9) / 8
    curve = found.curve(np.arange(9) / 255)
    assert np.all(np.diff(curve) <= 0)
    found.save(tmp_path / "certificate.json")
    assert "clean accuracy 0.5" in found.summary([1 / 255])


def test_wrong_arguments_are_refused() -> None:
    graph, x, y = plain(0), np.zeros((2, 2, 2, 1)), np.zeros(2, int)
    for arguments, message in (
        ({"step": 0.0}, "step"),
        ({"max_steps": 0}, "max_steps"),
        ({"kernels": "metal"}, "known"),
        ({"bounds": (1.0, 0.0)}, "bounds"),
    ):
        with pytest.raises(ValueError, match=message):
            interval_certificate(graph, x, y, **arguments)
    for wrong_x, wrong_y, message in (
        (x, np.zeros(3, int), "one label"),
        (x, np.zeros(2), "integers"),
        (x + np.nan, y, "NaN"),
        (x[:0], y[:0], "batch"),
    ):
        with pytest.raises(ValueError, match=message):
            interval_certificate(graph, wrong_x, wrong_y)
    with pytest.raises(ValueError, match="low <= high"):
        propagate(graph, np.ones((1, 2, 2, 1)), np.zeros((1, 2, 2, 1)))
    strange = plain(0)
    strange.operators.append(Operator("COS", strange.outputs, (0,)))
    with pytest.raises(ValueError, match="COS"):
        check_intervals(strange)
    both = plain(0)
    both.inputs = (0, 0)
    with pytest.raises(ValueError, match="one input"):
        check_intervals(both)


@pytest.mark.parametrize("kernels", KERNEL_SETS)
def test_product_with_constants_of_both_signs_is_its_exact_range(kernels) -> None:
    """Every input integer, by the reference interpreter: the interval is attained at both ends."""
    graph = IntegerGraph()
    source = Tensor("input", (-1, 3), "int8", Quantization.per_tensor(1 / 255, -128))
    factor = np.array([[100, -70, 0]], np.int8)
    constant = Tensor("factor", (1, 3), "int8", Quantization.per_tensor(0.01, 0), factor)
    result = Tensor("result", (-1, 3), "int8", Quantization.per_tensor(0.013, 5))
    left, right, output = (graph.add_tensor(t) for t in (source, constant, result))
    graph.operators.append(Operator("MUL", (left, right), (output,), Elementwise()))
    graph.inputs, graph.outputs = (left,), (output,)
    every = np.repeat(np.arange(-128, 128, dtype=np.int8)[:, None], 3, axis=1)
    for low, high in ((-128, 127), (-100, -90), (0, 0)):
        box = [np.full((1, 3), end, np.int8) for end in (low, high)]
        lower, upper = propagate(graph, *box, kernels).values[output]
        inside = run(graph, [every[low + 128 : high + 129]], kernels)[output]
        np.testing.assert_array_equal(lower[0], inside.min(0))
        np.testing.assert_array_equal(upper[0], inside.max(0))


@pytest.mark.parametrize("certificate", [interval_certificate, complete_certificate])
def test_one_score_for_two_classes_is_refused(certificate) -> None:
    graph = GraphBuilder((2, 2, 1), 0).conv(3).flatten().dense(1).graph
    images = np.full((2, 2, 2, 1), 0.5, np.float32)
    with pytest.raises(ValueError, match="is one score for two classes"):
        certificate(graph, images, np.zeros(2, int))
