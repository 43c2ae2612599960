"""Results half-way between two integers: reference and twin against LiteRT, every kernel set."""

import dataclasses

import numpy as np
import pytest

from tests.tflite_export.graphs import skip_if_missing
from tests.tflite_export.near_ties import NEAR_TIES
from tflite_export.files.validate import check_graph
from tflite_export.files.write import write
from tflite_export.ops import OPERATORS
from tflite_export.ops.spec import Keeps
from tflite_export.runtime.interpreter import Interpreter
from tflite_export.runtime.reference import run
from tflite_export.twin.integer_twin import IntegerTwin

CHOICES = {"default": "xnnpack", "builtin": "builtin", "reference": "reference"}
MOVING = {kind for kind, spec in OPERATORS.items() if spec.keeps is not Keeps.NOTHING}


def test_every_operator_that_rounds_is_tried() -> None:
    kinds = {make(0)[0].operators[0].kind for make in NEAR_TIES.values()}
    assert kinds == set(OPERATORS) - MOVING - {"DEQUANTIZE"}


@pytest.mark.parametrize("kernels", CHOICES)
@pytest.mark.parametrize("name", NEAR_TIES)
def test_near_ties_round_as_in_the_runtime(name, kernels) -> None:
    for seed in range(8):
        graph, values = NEAR_TIES[name](seed)
        check_graph(graph)
        skip_if_missing(graph, CHOICES[kernels])
        expected = np.asarray(Interpreter(write(graph), kernels=kernels).invoke(values)[0])
        ours = run(graph, values, CHOICES[kernels])[graph.outputs[0]]
        np.testing.assert_array_equal(ours, expected, err_msg=f"seed {seed}")
        if seed < 3:
            twin = IntegerTwin(graph, kernels=CHOICES[kernels])
            given = values if len(values) > 1 else values[0]
            np.testing.assert_array_equal(twin.integers(given).numpy(), ours)


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_a_built_in_sum_is_rounded_in_vectors_of_sixteen(rows) -> None:
    """Rows of 15: which entries are in a vector depends on the batch."""
    differing = 0
    for seed in (4, 28, 36):
        graph, values = NEAR_TIES["add"](seed)
        graph.tensors = [_narrow(tensor) for tensor in graph.tensors]
        for first in range(0, 240, 15):
            part = [np.ascontiguousarray(v[1 : 1 + rows, first : first + 15]) for v in values]
            expected = Interpreter(write(graph), kernels="builtin").invoke(part)[0]
            ours = run(graph, part, "builtin")[graph.outputs[0]]
            np.testing.assert_array_equal(ours, expected)
            differing += int((ours != run(graph, part, "reference")[graph.outputs[0]]).sum())
    assert (differing > 0) == (rows > 1)


def test_a_built_in_sum_of_int16_is_rounded_in_vectors_of_sixteen() -> None:
    differing = 0
    for seed in range(12):
        graph, values = NEAR_TIES["add_int16"](seed)
        graph.tensors = [_narrow(tensor) for tensor in graph.tensors]
        for rows in (1, 3):
            for first in range(0, 41, rows):
                part = [np.ascontiguousarray(v[first : first + rows, :15]) for v in values]
                expected = Interpreter(write(graph), kernels="builtin").invoke(part)[0]
                ours = run(graph, part, "builtin")[graph.outputs[0]]
                np.testing.assert_array_equal(ours, expected)
                others = run(graph, part, "reference")[graph.outputs[0]]
                assert rows > 1 or (ours == others).all()
                differing += int((ours != others).sum())
    assert differing > 0


@pytest.mark.parametrize("written", [1, 0], ids=["1, 45", "45"])
def test_an_int16_constant_is_added_in_vectors_to_a_single_sample(written: int) -> None:
    """Whether the constant's shape begins with a 1 or not: LiteRT then has two of one shape."""
    differing = 0
    for seed in range(8):
        graph, values = NEAR_TIES["add_int16"](seed)
        a, b, y = graph.tensors
        for place in range(0, 40, 4):
            data = values[1][place : place + 1].reshape((1,) * written + (45,))
            constant = dataclasses.replace(b, shape=data.shape, data=data)
            graph.tensors, graph.inputs = [a, constant, y], (0,)
            content, twin = write(graph), IntegerTwin(graph, kernels="builtin")
            for count in (1, 2):
                sample = [np.ascontiguousarray(values[0][place : place + count])]
                expected = Interpreter(content, kernels="builtin").invoke(sample)[0]
                ours = run(graph, sample, "builtin")[graph.outputs[0]]
                np.testing.assert_array_equal(ours, expected)
                np.testing.assert_array_equal(twin.integers(sample[0]).numpy(), expected)
                others = run(graph, sample, "reference")[graph.outputs[0]]
                assert count == 1 or (ours == others).all()
                differing += int((ours != others).sum())
    assert differing > 0


def test_a_sum_whose_rounding_depends_on_the_batch_is_refused_by_name() -> None:
    graph, _ = NEAR_TIES["add"](0)
    a, b, y = graph.tensors
    data = np.ones((1, 5, 4, 1), np.int8)
    graph.tensors = [
        dataclasses.replace(a, shape=(-1, 1, 4, 7)),
        dataclasses.replace(b, shape=data.shape, data=data),
        dataclasses.replace(y, shape=(-1, 5, 4, 7)),
    ]
    graph.inputs = (0,)
    values = [np.ones((2, 1, 4, 7), np.int8)]
    expected = Interpreter(write(graph)).invoke(values)[0]
    np.testing.assert_array_equal(run(graph, values)[2], expected)
    with pytest.raises(ValueError, match=r"operator ADD, which computes 'y'.*depends on the batch"):
        run(graph, values, "builtin")


def _narrow(tensor):
    return dataclasses.replace(tensor, shape=(-1, 15))
