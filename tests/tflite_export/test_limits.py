"""Small files that ask for hours or all memory are refused; networks as people use them pass."""

import dataclasses
import re
from fractions import Fraction
from pathlib import Path

import ai_edge_litert.schema_py_generated as litert
import numpy as np
import pytest

from tests.tflite_export.graphs import GRAPHS, Draw, rewired
from tests.tflite_export.hostile import add_metadata, count_calls, opened, packed
from tflite_export.__main__ import main
from tflite_export.files.cost import cost_of, samples_at_once
from tflite_export.files.metadata import GOLDEN_NAME, GoldenVectors, pack_golden
from tflite_export.files.proof import integer_only
from tflite_export.files.read import read
from tflite_export.files.validate import validate
from tflite_export.files.write import write
from tflite_export.ir.graph import Convolution, Pooling
from tflite_export.ir.limits import DEFAULTS, UNLIMITED, Limits
from tflite_export.ops.transpose_conv import TransposedConvolution
from tflite_export.runtime.device import selftest
from tflite_export.runtime.interpreter import Interpreter
from tflite_export.runtime.memory import added_peak


def _pool(kind, size, window, stride=1, channels=1):
    draw = Draw(1)
    source = draw.value("x", (-1, size, size, channels), 0.1, 0)
    out = -(-size // stride)
    output = draw.value("y", (-1, out, out, channels), 0.1, 0)
    return write(
        draw.done(kind, (source,), output, Pooling("SAME", stride, stride, window, window))
    )


def _pad(amount):
    draw = Draw(1)
    source = draw.value("x", (-1, 2, 2, 1), 0.1, 0)
    pairs = np.array([(0, 0), (0, amount - 2), (0, amount - 2), (0, 0)], np.int32)
    output = draw.value("y", (-1, amount, amount, 1), 0.1, 0)
    return write(draw.done("PAD", (source, draw.constant("p", pairs, None, "int32")), output))


def _convolution(size, window, outputs=1, dilation=1):
    draw = Draw(1)
    source = draw.value("x", (-1, size, size, 1))
    options = Convolution("SAME", 1, 1, "NONE", dilation, dilation)
    shape = (outputs, window, window, 1)
    return write(draw.weighted("CONV_2D", source, shape, 0, options, (-1, size, size, outputs)))


def _transposed(size, window):
    draw = Draw(1)
    shape = (1, size, size, 1)
    options = TransposedConvolution("SAME", 1, 1)
    source = draw.value("x", shape)
    graph = draw.weighted("TRANSPOSE_CONV", source, (1, window, window, 1), 0, options, shape)
    wanted = draw.constant("size", np.array(shape, np.int32), None, "int32")
    return write(rewired(graph, wanted))


def _shared(kind):
    """A file in which many entries point to one place of 2 MB."""
    model = opened(write(GRAPHS["pad"](1)))
    subgraph = model.subgraphs[0]
    big = litert.BufferT()
    big.data = np.zeros(2 << 20, np.uint8)
    model.buffers.append(big)
    last = len(model.buffers) - 1
    if kind == "metadata":
        for position in range(1000):
            add_metadata(model, f"m{position}", last)
    else:
        for position in range(1000):
            tensor = litert.TensorT()
            tensor.name, tensor.buffer = f"t{position}", last
            tensor.shape = np.array([4 << 20 if kind == "int4" else 2 << 20], np.int32)
            tensor.type = litert.TensorType.INT4 if kind == "int4" else litert.TensorType.INT8
            subgraph.tensors.append(tensor)
    return packed(model)


def _golden(samples):
    graph = GRAPHS["max_pool"](1)
    arrays = [
        [np.zeros((samples, *graph.tensors[i].shape[1:]), np.int8) for i in indices]
        for indices in (graph.inputs, graph.outputs)
    ]
    graph.metadata[GOLDEN_NAME] = pack_golden(GoldenVectors(*arrays))
    return write(graph)


def _repeated(count):
    """Additions of a tensor to itself, ``count`` of them in a row."""
    graph = GRAPHS["add"](1)
    source = dataclasses.replace(graph.tensors[0], shape=(-1, 1))
    graph.tensors = [dataclasses.replace(source, name=f"t{i}") for i in range(count + 1)]
    operator = graph.operators[0]
    graph.operators = [
        dataclasses.replace(operator, inputs=(i, i), outputs=(i + 1,)) for i in range(count)
    ]
    graph.inputs, graph.outputs = (0,), (count,)
    return write(graph)


HOSTILE = {
    "operations max": (lambda: _pool("MAX_POOL_2D", 300, 300), "operations|windows"),
    "operations average": (lambda: _pool("AVERAGE_POOL_2D", 300, 300), "operations|windows"),
    "a pool's padding": (lambda: _pool("MAX_POOL_2D", 4, 1 << 15, 1 << 15), "activations"),
    "a pool's window": (lambda: _pool("AVERAGE_POOL_2D", 64, 1 << 15), "activations"),
    "a convolution's windows": (lambda: _convolution(1000, 9), "windows"),
    "a convolution's padding": (lambda: _convolution(64, 2, dilation=1 << 14), "activations"),
    "a transposed convolution's products": (lambda: _transposed(1000, 9), "windows"),
    "multiply-accumulates": (lambda: _convolution(400, 3, 64), "operations"),
    "PAD": (lambda: _pad(1 << 15), "activations"),
    "metadata": (lambda: _shared("metadata"), "unpacked"),
    "int4": (lambda: _shared("int4"), "unpacked"),
    "int8": (lambda: _shared("int8"), "unpacked"),
    "golden": (lambda: _golden(1 << 20), "golden"),
    "operators": (lambda: _repeated(3000), "operators"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_small_files_can_not_cost_much(name):
    make, limit = HOSTILE[name]
    content = make()

    def refuse():
        with pytest.raises(ValueError, match=rf"limits=Limits\(({limit})="):
            validate(content)

    assert added_peak(refuse) < 300
    assert count_calls(refuse) < 250_000


@pytest.mark.parametrize("reader", [validate, Interpreter, integer_only, read])
def test_shared_buffers_are_refused_by_every_reader(reader):
    with pytest.raises(ValueError, match="unpacked"):
        reader(_shared("int4"))
    with pytest.raises(ValueError, match="unpacked"):
        reader(_shared("metadata"))


def test_a_trusted_file_unpacks_no_more_than_another():
    with pytest.raises(ValueError, match="unpacked"):
        Interpreter(_shared("metadata"), trusted=True)


def test_every_limit_can_be_raised_by_argument_and_flag(tmp_path, capsys):
    content = _convolution(400, 3, 64)
    path = tmp_path / "large.tflite"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"large\.tflite.*--cost-limit operations=") as caught:
        Interpreter(path)
    needed = cost_of(read(content)).operations
    assert f"Limits(operations={needed})" in str(caught.value)
    assert Interpreter(path, limits=Limits(operations=needed)).graph.operators
    with pytest.raises(ValueError, match="operations"):
        Interpreter(path, limits=Limits(operations=needed - 1))
    np.save(tmp_path / "x.npy", np.zeros((0, 400, 400, 1), np.int8))
    call = ["run", str(path), str(tmp_path / "x.npy")]
    assert main(call) == 2
    assert "--cost-limit operations=" in capsys.readouterr().err
    assert main([*call, "--cost-limit", f"operations={needed}"]) == 0
    for name in DEFAULTS:
        assert Limits.parse([f"{name}=1e9"]) == Limits(**{name: 10**9})


def test_the_defaults_are_those_of_the_security_policy():
    text = (Path(__file__).parents[2] / "SECURITY.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| .* \| ([\d,]+)( MiB)? \| ([\d,/]+) \|$", text, re.MULTILINE)
    found = {
        name: (int(floor.replace(",", "")) << (20 if unit else 0), Fraction(each.replace(",", "")))
        for name, floor, unit, each in rows
    }
    assert found == {name: (d.floor, Fraction(d.per_byte)) for name, d in DEFAULTS.items()}


@pytest.mark.parametrize("text", ["speed=1", "operations", "operations=many", "operations=inf"])
def test_a_limit_that_is_none_is_named(text, tmp_path, capsys):
    path = tmp_path / "m.tflite"
    path.write_bytes(write(GRAPHS["pad"](1)))
    assert main(["inspect", str(path), "--cost-limit", text]) == 2
    assert "NAME=NUMBER" in capsys.readouterr().err


@pytest.mark.parametrize("value", [0, -1, 1.5, "1"])
def test_limits_are_positive_whole_numbers(value):
    with pytest.raises(ValueError, match="at least 1"):
        Limits(operations=value)


def test_golden_vectors_that_take_long_are_not_run():
    content = _golden(50)
    work = 50 * cost_of(read(content)).operations
    assert selftest(content, limits=Limits(golden_operations=work)).samples == 50
    with pytest.raises(ValueError, match="golden_operations"):
        selftest(content, limits=Limits(golden_operations=work - 1))


def test_the_cost_is_that_of_the_closed_form():
    cost = cost_of(read(_pool("MAX_POOL_2D", 10, 4, channels=3)))
    assert cost.operations == 10 * 10 * 3 * 4 * 4
    assert cost.windows == 10 * 10 * 4 * 4 * 8
    assert cost.activations == 2 * 10 * 10 * 3 + 13 * 13 * 3
    cost = cost_of(read(_convolution(12, 3, 5)))
    assert cost.operations == 12 * 12 * 9 * 5
    assert cost.windows == 12 * 12 * 9 * 8
    assert cost.activations == 12 * 12 * 6 + 14 * 14


def test_batches_shrink_where_a_sample_is_large():
    graph = read(_convolution(600, 3, 8))
    assert samples_at_once(graph, 64) < 64
    assert samples_at_once(read(_convolution(12, 3)), 64) == 64
    cost = cost_of(graph)
    assert samples_at_once(graph, 64) == (1 << 27) // (cost.activations + cost.windows)
    assert Interpreter(write(graph), limits=UNLIMITED).batch_size == samples_at_once(graph, 64)
