"""The contract of every operator: what its specification says holds, for each that is there."""

import dataclasses
import itertools
from importlib import import_module

import numpy as np
import pytest

from tests.tflite_export.draw import Draw, grid
from tests.tflite_export.graphs import GRAPHS, feeds, skip_if_missing
from tflite_export.files.validate import check_graph
from tflite_export.files.write import write
from tflite_export.ir.graph import DTYPES, FullyConnected
from tflite_export.ops import OPERATORS
from tflite_export.ops.batch_matmul import BatchMatMul
from tflite_export.ops.spec import KERNEL_SETS, Keeps, OperatorSpec
from tflite_export.runtime.interpreter import Interpreter
from tflite_export.runtime.reference import run

RUNTIMES = {"default": "xnnpack", "builtin": "builtin", "reference": "reference"}


def test_every_question_is_answered_and_every_operator_drawn():
    assert all(field.default is dataclasses.MISSING for field in dataclasses.fields(OperatorSpec))
    assert {GRAPHS[name](0).operators[0].kind for name in GRAPHS} == set(OPERATORS)
    for kind, spec in OPERATORS.items():
        assert spec.kind == kind
        assert callable(import_module(f"tflite_export.ops.{spec.twin}").build)


def _operator(name, seed, kernels):
    """The only operator of a drawn graph: (graph, specification, step)."""
    graph = GRAPHS[name](seed)
    (operator,) = graph.operators
    spec = OPERATORS[operator.kind]
    tensors = [graph.tensors[i] for i in operator.inputs]
    return graph, spec, spec.step(operator, tensors, graph.tensors[operator.outputs[0]], kernels)


def _narrow_boxes(graph, values, rng):
    """A box of four open entries for each input, and all of its points."""
    lows = [value[:1].copy() for value in values]
    highs = [low.copy() for low in lows]
    for _ in range(4):
        which = rng.integers(len(lows))
        place = rng.integers(lows[which].size)
        low, high = lows[which].reshape(-1), highs[which].reshape(-1)
        if high.dtype == np.float32:
            high[place] = low[place] + np.float32(rng.uniform(0, 2))
        else:
            most = np.iinfo(high.dtype).max
            high[place] = min(int(low[place]) + int(rng.integers(0, 4)), most)
    axes = []
    for low, high in zip(lows, highs, strict=True):
        for a, b in zip(low.reshape(-1), high.reshape(-1), strict=True):
            axes.append(
                [a]
                if a == b
                else np.linspace(a, b, 4)
                if a.dtype == np.float32
                else list(range(int(a), int(b) + 1))
            )
    open_axes = [i for i, axis in enumerate(axes) if len(axis) > 1]
    flat = np.concatenate([low.reshape(-1) for low in lows])
    points = np.repeat(flat[None], np.prod([len(axes[i]) for i in open_axes], dtype=int), axis=0)
    if open_axes:
        points[:, open_axes] = list(itertools.product(*(axes[i] for i in open_axes)))
    ends = np.cumsum([low.size for low in lows])[:-1]
    parts = np.split(points, ends, axis=1)
    shaped = [
        part.reshape(-1, *low.shape[1:]).astype(low.dtype)
        for part, low in zip(parts, lows, strict=True)
    ]
    return lows, highs, shaped


@pytest.mark.parametrize("kernels", KERNEL_SETS)
@pytest.mark.parametrize("name", [name for name in GRAPHS if name != "arg_max"])
def test_no_point_of_a_box_leaves_its_interval(name, kernels):
    rng = np.random.default_rng(5)
    skip_if_missing(GRAPHS[name](0), kernels)
    for seed in range(3):
        graph, spec, step = _operator(name, seed, kernels)
        low, high, points = _narrow_boxes(graph, feeds(graph, 2, seed), rng)
        given = dict(zip(graph.inputs, zip(low, high, strict=True), strict=True))
        boxes = [
            given[i] if i in given else (graph.tensors[i].data,) * 2
            for i in graph.operators[0].inputs
        ]
        lowest, highest = spec.interval(step, boxes)
        assert lowest.dtype == highest.dtype == DTYPES[step.output.dtype]
        found = run(graph, points, kernels)[graph.outputs[0]]
        assert (found >= lowest).all()
        assert (found <= highest).all()
        # The table of a softmax and a root are bounded with a step to spare, both ways that
        # built-in kernels change a grid in are bounded at once.
        if name not in ("softmax", "requantize", "l2_normalization"):
            fixed = [np.concatenate([point, point]) for point in low]
            ours = run(graph, fixed, kernels)[graph.outputs[0]][:1]
            alone = spec.interval(step, [(box[0], box[0]) for box in boxes])
            np.testing.assert_array_equal(alone[0], ours)
            np.testing.assert_array_equal(alone[1], ours)


@pytest.mark.parametrize(
    ("inner", "scale", "said"),
    [(4, 1 / 255, "result are 255, expected"), (1000, 1 / 64, "sums of 1000 products, times")],
)
def test_products_of_matrices_that_kernels_crash_or_overflow_on_are_refused(inner, scale, said):
    graph = GRAPHS["batch_matmul"](2)
    shapes = {"a": (-1, 3, inner), "b": (-1, inner, 3), "y": (-1, 3, 3)}
    steps = {"a": 1.0, "b": 1.0, "y": scale}
    graph.tensors = [
        dataclasses.replace(t, shape=shapes[t.name], quantization=grid(steps[t.name]))
        for t in graph.tensors
    ]
    (operator,) = graph.operators
    graph.operators = [dataclasses.replace(operator, options=BatchMatMul())]
    with pytest.raises(ValueError, match=f"BATCH_MATMUL.*{said}"):
        check_graph(graph)


@pytest.mark.parametrize("name", ["convolution", "depthwise", "fully_connected"])
def test_sums_that_kernels_shift_out_of_their_accumulator_are_refused(name):
    graph = GRAPHS[name](3)
    (operator,) = graph.operators
    source, weights, bias = (graph.tensors[index] for index in operator.inputs)
    values = np.full(bias.shape, 2**26, np.int32)
    graph.tensors[operator.inputs[2]] = dataclasses.replace(bias, data=values)
    (output,) = graph.outputs
    product = float(source.scale) * float(weights.quantization.scale.max())
    for factor, refused in ((1.5, False), (100.0, True)):
        step = grid(product / factor, graph.tensors[output].zero_point)
        graph.tensors[output] = dataclasses.replace(graph.tensors[output], quantization=step)
        if not refused:
            check_graph(graph)
            continue
        with pytest.raises(ValueError, match="times factors of up to 100, do not fit"):
            check_graph(graph)
        values = feeds(graph, 3)
        theirs = Interpreter(write(graph), kernels="builtin", trusted=True).invoke(values)[0]
        assert not np.array_equal(theirs, run(graph, values, "builtin")[output])


def _dense_int16(inputs, factor):
    """A dense layer with no bias whose largest sums are inputs * 127 * 32768."""
    draw = Draw(0)
    source = draw.value("x", (-1, inputs), 0.01, 0, "int16")
    rows = np.repeat(np.array([[127], [-127]], np.int8), inputs, axis=1)
    weights = draw.constant("w", rows, grid(0.02), "int8")
    result = draw.value("y", (-1, 2), 0.01 * 0.02 / factor, 0, "int16")
    return draw.done("FULLY_CONNECTED", (source, weights), result, FullyConnected())


@pytest.mark.parametrize(
    ("inputs", "factor", "refused"),
    [(300, 1.5, True), (300, 1.2, True), (600, 0.4, True), (300, 0.9, False), (200, 1.5, False)],
)
def test_sums_of_int16_without_a_bias_keep_to_the_32_bits_they_are_added_in(
    inputs, factor, refused
):
    graph = _dense_int16(inputs, factor)
    values = [np.repeat(np.int16([[32767], [-32768], [20000]]), inputs, axis=1)]
    content = write(graph)
    theirs = Interpreter(content, kernels="builtin", trusted=True).invoke(values)[0]
    assert np.array_equal(theirs, run(graph, values, "builtin")[graph.outputs[0]]) != refused
    if refused:
        with pytest.raises(ValueError, match=rf"factors of up to {factor}, .* give the layer one"):
            check_graph(graph)
    else:
        check_graph(graph)


@pytest.mark.parametrize("name", ["fully_connected", "fully_connected_int16"])
def test_what_to_do_about_sums_too_large_is_said(name):
    graph = GRAPHS[name](3)
    (operator,) = graph.operators
    source, weights, bias = (graph.tensors[index] for index in operator.inputs)
    wide = bias.dtype == "int64"
    values = np.full(bias.shape, 2**47 if wide else 2**31 - 1, bias.dtype)
    graph.tensors[operator.inputs[2]] = dataclasses.replace(bias, data=values)
    with pytest.raises(ValueError, match=r"do not fit (48|32) bits; split the layer or make"):
        check_graph(graph)
    values = np.full(bias.shape, 2**46 if wide else 2**30, bias.dtype)
    graph.tensors[operator.inputs[2]] = dataclasses.replace(bias, data=values)
    (output,) = graph.outputs
    product = float(source.scale) * float(weights.quantization.scale.max())
    step = grid(product / 10, graph.tensors[output].zero_point)
    graph.tensors[output] = dataclasses.replace(graph.tensors[output], quantization=step)
    with pytest.raises(ValueError, match=r"do not fit 32 bits; widen the range of the output"):
        check_graph(graph)


@pytest.mark.parametrize("name", GRAPHS)
def test_an_operator_that_keeps_integers_makes_no_others(name):
    graph, spec, step = _operator(name, 1, "xnnpack")
    values = feeds(graph, 4)
    found = run(graph, values)[graph.outputs[0]]
    values += [t.data for t in step.inputs if t.data is not None and t.quantization is not None]
    allowed = set(np.unique(np.concatenate([v.reshape(-1) for v in values])))
    if spec.keeps is Keeps.INTEGERS_AND_ZERO:
        allowed.add(step.output.zero_point)
    if spec.keeps is not Keeps.NOTHING:
        assert set(np.unique(found)) <= allowed
