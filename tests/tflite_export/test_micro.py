"""What TensorFlow Lite Micro is told of a file."""

import shutil
import subprocess

import pytest

from tests.tflite_export.graphs import GRAPHS, Draw
from tflite_export.files.c_array import c_array
from tflite_export.ir.graph import Elementwise, NoOptions, Operator
from tflite_export.runtime.micro import least_arena, resolver


def test_an_arena_holds_what_is_alive_at_once():
    """Two branches of one input, 64 bytes each: the input lives until the second is computed."""
    draw = Draw(0)
    entry = draw.value("x", (-1, 64), 0.1, 0)
    left, right, total, long = (draw.value(n, (-1, 64), 0.1, 0) for n in "lrts")
    graph = draw.graph
    for inputs, output in (((entry,), left), ((entry,), right)):
        graph.operators.append(Operator("RELU", inputs, (output,), NoOptions()))
    graph.operators.append(Operator("ADD", (left, right), (total,), Elementwise()))
    graph.operators.append(Operator("RELU", (total,), (long,), NoOptions()))
    graph.inputs, graph.outputs = (entry,), (long,)
    assert least_arena(graph) == 3 * 64
    graph.outputs = (left, long)
    assert least_arena(graph) == 3 * 64
    graph.outputs = (left, right, long)
    assert least_arena(graph) == 4 * 64


def test_a_reshape_needs_no_room_of_its_own():
    assert least_arena(GRAPHS["reshape"](0)) == 0


def test_operators_are_named_as_the_resolver_names_them():
    for name, method in (
        ("batch_matmul", "AddBatchMatMul"),
        ("padv2", "AddPadV2"),
        ("l2_normalization", "AddL2Normalization"),
        ("resize_nearest_neighbor", "AddResizeNearestNeighbor"),
        ("depthwise", "AddDepthwiseConv2D"),
    ):
        assert f"ops.{method}();" in resolver(GRAPHS[name](0))


def test_operators_that_it_lacks_are_named():
    with pytest.raises(ValueError, match="Micro does not have GELU"):
        resolver(GRAPHS["gelu"](0))


def test_an_array_is_what_a_compiler_reads(tmp_path):
    compiler = shutil.which("c++") or pytest.skip("no C++ compiler")
    content = bytes(range(256)) * 3 + b"end"
    source, program = tmp_path / "model.cc", tmp_path / "model"
    source.write_text(
        c_array(content, "net")
        + "#include <cstdio>\nint main() {"
        + "fwrite(net, 1, net_len, stdout); return reinterpret_cast<unsigned long>(net) % 16; }"
    )
    subprocess.run([compiler, "-std=c++11", source, "-o", program], check=True)
    assert subprocess.run([program], capture_output=True, check=True).stdout == content
    with pytest.raises(ValueError, match="names no array"):
        c_array(content, "2d")
