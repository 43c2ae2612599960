"""Files that would kill or stall the process, or raise what nobody expects, are refused by name."""

import dataclasses
import json

import numpy as np
import pytest

from tests.tflite_export.graphs import GRAPHS
from tests.tflite_export.hostile import add_metadata, opened, packed, store_shape
from tflite_export.__main__ import main
from tflite_export.conversion.parity import verify
from tflite_export.files.metadata import GOLDEN_NAME, MODEL_NAME, GoldenVectors, pack_golden
from tflite_export.files.proof import integer_only
from tflite_export.files.read import read
from tflite_export.files.validate import validate
from tflite_export.files.write import write
from tflite_export.ir.graph import Elementwise, IntegerGraph, Operator, Quantization, Tensor
from tflite_export.ops import OPERATORS
from tflite_export.runtime.all_outputs import expose
from tflite_export.runtime.device import selftest
from tflite_export.runtime.inspection import describe
from tflite_export.runtime.interpreter import Interpreter
from tflite_export.twin.integer_twin import IntegerTwin

KERNELS = ("default", "builtin", "reference")
WEIGHTED = ("convolution", "convolution_int4", "depthwise", "depthwise_int4", "fully_connected")


def _changed(graph, **values):
    graph.operators[0] = dataclasses.replace(graph.operators[0], **values)
    return graph


def _in_floats(graph):
    graph.tensors = [
        dataclasses.replace(
            tensor,
            dtype="float32",
            quantization=None,
            data=None if tensor.data is None else tensor.data.astype(np.float32),
        )
        for tensor in graph.tensors
    ]
    return graph


@pytest.mark.parametrize("floats", [False, True])
@pytest.mark.parametrize("left_out", [(), (-1,)])
@pytest.mark.parametrize("name", WEIGHTED)
def test_a_left_out_bias_is_refused_or_runs(name, left_out, floats):
    graph = GRAPHS[name](1)
    graph = _in_floats(graph) if floats else graph
    graph = _changed(graph, inputs=(*graph.operators[0].inputs[:2], *left_out))
    content = write(graph)
    if name != "fully_connected":
        with pytest.raises(ValueError, match="operands, expected 3"):
            validate(content)
        return
    source = graph.tensors[graph.inputs[0]]
    feed = np.ones((2, *source.shape[1:]), source.dtype)
    for kernels in KERNELS:
        assert len(Interpreter(content, kernels=kernels).invoke([feed])[0]) == 2


@pytest.mark.parametrize("batch", [0, 7, 1 << 20])
@pytest.mark.parametrize("name", GRAPHS)
def test_an_open_size_is_stored_as_one(name, batch):
    graph = GRAPHS[name](1)
    for index in (*graph.inputs, *graph.outputs):
        model = opened(write(graph))
        store_shape(model, index, batch)
        fixed = graph.tensors[index].shape[:1] == (1,)
        said = (
            "sizes start at 1|must be open or 1|expected|larger than"
            if fixed
            else "must be stored as 1"
        )
        with pytest.raises(ValueError, match=said):
            validate(packed(model))


def test_an_intermediate_size_is_stored_as_one_too():
    model = opened(write(_chain(3)))
    store_shape(model, 1, 7)
    with pytest.raises(ValueError, match="must be stored as 1"):
        validate(packed(model))


@pytest.mark.parametrize("batch", [2, 7])
def test_a_fixed_batch_other_than_one_is_refused(batch):
    graph = GRAPHS["max_pool"](1)
    for index in (*graph.inputs, *graph.outputs):
        tensor = graph.tensors[index]
        graph.tensors[index] = dataclasses.replace(tensor, shape=(batch, *tensor.shape[1:]))
    with pytest.raises(ValueError, match="batch, which must be open or 1"):
        validate(write(graph))


def _softmax(beta, scale):
    graph = GRAPHS["softmax"](1)
    options = dataclasses.replace(graph.operators[0].options, beta=beta)
    graph = _changed(graph, options=options)
    grid = Quantization.per_tensor(scale)
    graph.tensors[0] = dataclasses.replace(graph.tensors[0], quantization=grid)
    return graph


@pytest.mark.parametrize(
    ("beta", "scale"), [(1e-9, 0.1), (1e-7, 0.1), (1.0, 1e-30), (2**-5, 2**-21)]
)
def test_softmax_of_hardly_any_slope_is_refused(beta, scale):
    with pytest.raises(ValueError, match="beta times scale"):
        validate(write(_softmax(beta, scale)))


def test_softmax_of_the_least_slope_runs():
    content = write(_softmax(2.0**-5, 2.0**-20))
    feed = np.zeros((2, *read(content).tensors[0].shape[1:]), np.int8)
    for kernels in KERNELS:
        assert Interpreter(content, kernels=kernels).invoke([feed])[0].shape == feed.shape


@pytest.mark.parametrize("scale", [1e-45, 1e-39])
@pytest.mark.parametrize("name", ["quantize", "dequantize", "reshape"])
def test_a_step_that_has_no_inverse_is_refused(name, scale):
    graph = GRAPHS[name](1)
    graph.tensors = [
        tensor
        if tensor.quantization is None
        else dataclasses.replace(tensor, quantization=Quantization.per_tensor(scale))
        for tensor in graph.tensors
    ]
    with pytest.raises(ValueError, match="not a positive number"):
        validate(write(graph))


def test_a_network_in_floats_has_no_integers_to_expose():
    assert expose(Interpreter(write(_in_floats(GRAPHS["fully_connected"](1))))) is None


@pytest.mark.parametrize("name", ["dequantize", "pad"])
def test_inputs_among_the_outputs_are_compared(name):
    graph = GRAPHS[name](1)
    if name == "pad":
        graph.outputs = (*graph.outputs, *graph.inputs)
    images = np.random.default_rng(0).random((3, *graph.tensors[0].shape[1:]))
    assert verify(None, write(graph), images.astype(np.float32) * 0.1).exact


def test_outputs_in_floats_are_not_compared():
    graph = _in_floats(GRAPHS["fully_connected"](1))
    with pytest.raises(ValueError, match="no integers to compare"):
        verify(None, write(graph), np.zeros((2, graph.tensors[0].shape[1]), np.float32))


def _chain(length):
    """Additions of an input to itself, one after the other."""
    graph = IntegerGraph(inputs=(0,))
    for position in range(length + 1):
        grid = Quantization.per_tensor(0.1 * 2.0**position)
        graph.add_tensor(Tensor(f"t{position}", (-1, 4, 4, 8), "int8", grid))
    graph.operators = [
        Operator("ADD", (i, i), (i + 1,), Elementwise("NONE")) for i in range(length)
    ]
    graph.outputs = (length,)
    return graph


@pytest.mark.parametrize("name", GRAPHS)
def test_a_repeated_operator_that_nobody_reads_is_refused(name):
    graph = GRAPHS[name](1)
    again = tuple(
        graph.add_tensor(dataclasses.replace(graph.tensors[index], name=f"again{index}"))
        for index in graph.outputs
    )
    graph.operators.append(dataclasses.replace(graph.operators[0], outputs=again))
    with pytest.raises(ValueError, match="neither read nor an output"):
        validate(write(graph))
    graph.outputs = (*graph.outputs, *again)
    validate(write(graph))


def test_an_operator_that_only_a_dead_one_reads_is_refused():
    graph = _chain(4)
    graph.outputs = (2,)
    with pytest.raises(ValueError, match="neither read nor an output"):
        validate(write(graph))


def test_every_operator_has_a_graph_here():
    kinds = {GRAPHS[name](1).operators[0].kind for name in GRAPHS}
    assert kinds == set(OPERATORS)


def _with_facts(facts):
    graph = GRAPHS["softmax"](1)
    graph.metadata[MODEL_NAME] = facts
    return write(graph)


@pytest.mark.parametrize(
    "labels", [["a"], "abc", {"a": 1}, [1, 2], 5, [["a"]], ["a"] * 300], ids=str
)
def test_labels_that_do_not_fit_are_refused(labels, tmp_path, capsys):
    path = tmp_path / "labels.tflite"
    path.write_bytes(_with_facts(json.dumps({"labels": labels}).encode()))
    with pytest.raises(ValueError, match=r"labels\.tflite.*labels"):
        Interpreter(path)
    with pytest.raises(ValueError, match=r"labels\.tflite.*labels"):
        Interpreter(path, trusted=True).labels  # noqa: B018
    np.save(tmp_path / "x.npy", np.zeros((1, 3), np.int8))
    assert main(["run", str(path), str(tmp_path / "x.npy"), "--top", "3"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {str(path)!r}: metadata")


@pytest.mark.parametrize(
    "facts", [b"\xff", b"[1]", b"{", b"[" * 10**5, b'{"a": ' + b"9" * 5000 + b"}"]
)
def test_damaged_facts_are_refused_by_every_reader(facts, tmp_path):
    path = tmp_path / "facts.tflite"
    path.write_bytes(_with_facts(facts))
    for reader in (validate, Interpreter, IntegerTwin):
        with pytest.raises(ValueError, match=r"facts\.tflite"):
            reader(path)
    assert main(["inspect", str(path)]) == 2


@pytest.mark.parametrize("reader", [read, validate, Interpreter, IntegerTwin, integer_only])
def test_every_reader_names_the_file_once(reader, tmp_path):
    path = tmp_path / "broken.tflite"
    path.write_bytes(write(GRAPHS["convolution"](0))[:500])
    with pytest.raises(ValueError, match=r"damaged|lost") as caught:
        reader(path)
    assert str(caught.value).startswith(f"{str(path)!r}: ")
    assert str(caught.value).count("broken.tflite") == 1


@pytest.mark.parametrize("command", ["inspect", "selftest", "verify", "run", "benchmark"])
def test_every_command_names_the_file_once(command, tmp_path, capsys):
    path = tmp_path / "broken.tflite"
    path.write_bytes(write(GRAPHS["convolution"](0))[:500])
    np.save(tmp_path / "x.npy", np.zeros((1, 3), np.int8))
    images = [str(tmp_path / "x.npy")] if command == "run" else []
    assert main([command, str(path), *images]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {str(path)!r}: ")
    assert error.count("broken.tflite") == 1


def test_golden_vectors_that_the_input_does_not_take_are_the_files_fault(tmp_path):
    graph = GRAPHS["quantize"](1)
    source, result = graph.tensors[graph.inputs[0]], graph.tensors[graph.outputs[0]]
    assert source.dtype == "float32"
    shape = (1, *source.shape[1:])
    golden = GoldenVectors([np.full(shape, 1e6, np.float32)], [np.zeros(shape, result.dtype)])
    graph.metadata[GOLDEN_NAME] = pack_golden(golden)
    path = tmp_path / "golden.tflite"
    path.write_bytes(write(graph))
    with pytest.raises(ValueError, match=r"golden\.tflite.*takes values from"):
        selftest(path)


def _odd(change):
    graph = GRAPHS["convolution"](1)
    model = opened(write(graph))
    change(model, model.subgraphs[0])
    return packed(model)


def _operands(model, subgraph):
    subgraph.operators[0].inputs = np.array([0], np.int32)


def _results(model, subgraph):
    subgraph.operators[0].outputs = np.zeros(0, np.int32)


def _nothing(model, subgraph):
    subgraph.outputs = np.zeros(0, np.int32)


def _far(model, subgraph):
    subgraph.operators[0].outputs = np.array([99], np.int32)


def _half(model, subgraph):
    subgraph.tensors[3].type = 1


def _per_channel(model, subgraph):
    subgraph.tensors[3].quantization.scale = np.ones(7, np.float32)
    subgraph.tensors[3].quantization.zeroPoint = np.zeros(7, np.int64)


def _flat(model, subgraph):
    subgraph.tensors[1].shape = np.array([np.prod(subgraph.tensors[1].shape)], np.int32)


def _activation(model, subgraph):
    subgraph.operators[0].builtinOptions.fusedActivationFunction = 4


@pytest.mark.parametrize(
    "change",
    [_operands, _results, _nothing, _far, _half, _per_channel, _flat, _activation],
    ids=lambda change: change.__name__,
)
def test_odd_files_are_looked_into_or_refused(change, tmp_path, capsys):
    content = _odd(change)
    path = tmp_path / "odd.tflite"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"odd\.tflite"):
        validate(path)
    status = main(["inspect", str(path)])
    error = capsys.readouterr().err
    assert status == 0 or (status == 2 and str(path) in error)
    if status == 0:
        describe(read(content, strict=False))


def test_names_of_metadata_may_be_repeated_a_little():
    model = opened(write(GRAPHS["pad"](1)))
    for name in ("a", "b"):
        add_metadata(model, name, 0)
    assert validate(packed(model)).metadata == {"a": b"", "b": b""}
