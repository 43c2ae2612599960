"""Writing, reading and validating files: two independent readers, damage, hostility."""

import dataclasses
import inspect
import re
import subprocess
import sys

import ai_edge_litert.schema_py_generated as litert
import numpy as np
import pytest

from tests.tflite_export.graphs import GRAPHS, feeds
from tflite_export.files.metadata import (
    DIGEST_NAME,
    GOLDEN_NAME,
    GoldenVectors,
    facts_of,
    golden_of,
    pack_facts,
    pack_golden,
)
from tflite_export.files.read import read
from tflite_export.files.validate import check_graph, validate
from tflite_export.files.wire import File
from tflite_export.files.write import write
from tflite_export.ir import schema
from tflite_export.ir.graph import Convolution, IntegerGraph, Operator, Quantization
from tflite_export.ops import OPERATORS
from tflite_export.runtime.device import selftest
from tflite_export.runtime.reference import run


def _same(left: IntegerGraph, right: IntegerGraph) -> None:
    assert left.operators == right.operators
    assert (left.inputs, left.outputs) == (right.inputs, right.outputs)
    for a, b in zip(left.tensors, right.tensors, strict=True):
        assert (a.name, a.shape, a.dtype) == (b.name, b.shape, b.dtype)
        assert (a.quantization is None) == (b.quantization is None)
        if a.quantization is not None:
            np.testing.assert_array_equal(a.quantization.scale, b.quantization.scale)
            np.testing.assert_array_equal(a.quantization.zero_point, b.quantization.zero_point)
            assert a.quantization.axis == b.quantization.axis
        if a.data is not None:
            np.testing.assert_array_equal(a.data, b.data)


@pytest.mark.parametrize("name", GRAPHS)
def test_reading_gives_back_what_was_written(name):
    for seed in range(5):
        graph = GRAPHS[name](seed)
        graph.metadata["note"] = b"something"
        content = write(graph)
        again = validate(content)
        _same(graph, again)
        assert again.metadata["note"] == b"something"
        assert write(dataclasses.replace(again, metadata={"note": b"something"})) == content


def test_litert_schema_reads_the_same_file():
    content = write(GRAPHS["convolution"](0))
    model = litert.ModelT.InitFromPackedBuf(content, 0)
    ours = read(content)
    theirs = model.subgraphs[0]
    assert model.version == 3
    assert [t.name.decode() for t in theirs.tensors] == [t.name for t in ours.tensors]
    kernel = theirs.tensors[ours.operators[0].inputs[1]]
    np.testing.assert_array_equal(kernel.quantization.scale, ours.tensors[1].quantization.scale)
    data = np.asarray(model.buffers[kernel.buffer].data).view(np.int8)
    np.testing.assert_array_equal(data, ours.tensors[1].data.reshape(-1))
    options = theirs.operators[0].builtinOptions
    assert options.strideW == ours.operators[0].options.stride_w
    assert options.dilationWFactor == ours.operators[0].options.dilation_w


def test_constants_start_at_multiples_of_sixteen():
    content = write(GRAPHS["convolution"](0))
    starts = [b.vector(0, 1)[0] for b in File(content).root(b"TFL3").tables(4)]
    assert all(start % 16 == 0 for start in starts)


@pytest.mark.parametrize("kind", OPERATORS)
def test_slots_are_those_of_the_published_schema(kind):
    layout = OPERATORS[kind].schema
    assert getattr(litert.BuiltinOptions, layout.table) == layout.union
    names = {"filter_w": "FilterWidth", "filter_h": "FilterHeight"}
    names |= {"activation": "FusedActivationFunction"}
    names |= {"dilation_w": "DilationWFactor", "dilation_h": "DilationHFactor"}
    for field in layout.fields:
        camel = names.get(field.name) or "".join(p.capitalize() for p in field.name.split("_"))
        source = inspect.getsource(getattr(litert, f"{layout.table}Add{camel}"))
        slot, default = re.search(r"Slot\((\d+), .+, ([-\d.]+)\)", source).groups()
        assert (int(slot), float(default)) == (field.slot, field.default)


def test_names_are_those_of_the_published_schema():
    for number, name in enumerate(schema.OPERATOR_NAMES):
        assert getattr(litert.BuiltinOperator, name) == number
    for number, name in enumerate(schema.TENSOR_TYPES):
        assert getattr(litert.TensorType, name.upper()) == number
    for number, name in enumerate(schema.ACTIVATIONS):
        assert getattr(litert.ActivationFunctionType, name) == number
    for number, name in enumerate(schema.PADDINGS):
        assert getattr(litert.Padding, name) == number


def test_int4_is_packed():
    graph = GRAPHS["convolution_int4"](1)
    size = graph.tensors[1].data.size
    wide = GRAPHS["convolution_int4"](1)
    wide.tensors[1] = dataclasses.replace(wide.tensors[1], dtype="int8")
    assert len(write(wide)) - len(write(graph)) == pytest.approx(size // 2, abs=64)


def test_metadata_travels(small_model):
    _, exported, _, _ = small_model
    facts = facts_of(read(exported.content))
    assert facts["labels"][3] == "digit 3"
    assert facts["clean_accuracy"] == 0.9
    assert facts["bits"]["stem_conv"] == [4, 4]
    assert facts["beta"] == 2e-3
    assert facts["verified"]["identical_to_twin"] == 1.0
    golden = golden_of(read(exported.content), 1 << 20)
    assert golden.count == 24
    with pytest.raises(ValueError, match="JSON"):
        pack_facts({"accuracy": float("nan")})


@pytest.mark.parametrize("content", [b"", b"not zlib", pack_golden(GoldenVectors([], []))])
def test_damaged_golden_vectors_are_named(content):
    graph = GRAPHS["convolution"](0)
    graph.metadata[GOLDEN_NAME] = content
    with pytest.raises(ValueError, match="golden"):
        validate(write(graph))


def test_every_flipped_bit_is_found(small_model):
    content = small_model[1].content
    rng = np.random.default_rng(0)
    missed = 0
    for position in rng.integers(0, 8 * len(content), 2000):
        damaged = bytearray(content)
        damaged[position // 8] ^= 1 << (position % 8)
        try:
            validate(bytes(damaged))
        except ValueError:
            continue
        missed += 1
    assert missed == 0


def test_every_truncation_is_found(small_model):
    content = small_model[1].content
    for size in [0, 1, 7, 8, 100, *np.random.default_rng(0).integers(0, len(content), 300)]:
        with pytest.raises(ValueError, match=r"damaged|not a TensorFlow Lite"):
            validate(content[: int(size)])


_FUZZ = """
import sys
import numpy as np
from tflite_export.files.metadata import DIGEST_NAME
from tflite_export.runtime.interpreter import Interpreter
from tflite_export.ir.schema import PRODUCER
from tflite_export.files.validate import validate

content = open(sys.argv[1], "rb").read()
seed, count = int(sys.argv[2]), int(sys.argv[3])
# without its digest a file is as one from elsewhere: only structure and graph are checked
content = content.replace(DIGEST_NAME.encode(), b"x" * len(DIGEST_NAME))
content = content.replace(PRODUCER.encode(), b"x" * len(PRODUCER))
validate(content)
rng = np.random.default_rng(seed)
structure = rng.integers(0, 2, count)
refused = ran = 0
for case in range(count):
    damaged = bytearray(content)
    kind = rng.integers(0, 4)
    for _ in range(rng.integers(1, 4)):
        # most of a file is weights: aim at the tables half of the time
        position = int(rng.integers(len(content) - 6000, len(content)) if structure[case]
                       else rng.integers(0, len(content)))
        if kind == 0:
            damaged[position] ^= 1 << rng.integers(0, 8)
        elif kind == 1:
            damaged[position] = rng.integers(0, 256)
        elif kind == 2:
            word = int(rng.choice([0, 1, 255, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1]))
            position = min(position // 4 * 4, len(content) - 4)
            damaged[position:position + 4] = word.to_bytes(4, "little")
        else:
            other = int(rng.integers(0, len(content) - 64))
            position = min(position, len(content) - 64)
            damaged[position:position + 32] = damaged[other:other + 32]
    if rng.integers(0, 10) == 0:
        damaged = damaged[: rng.integers(0, len(damaged))]
    try:
        model = Interpreter(bytes(damaged))
        if np.prod([t.shape[1:] for t in model.input_tensors]) < 1e6:
            model.invoke([np.zeros((2, *t.shape[1:]), np.int8 if t.dtype == "int8" else t.dtype)
                          for t in model.input_tensors])
        ran += 1
    except ValueError:
        refused += 1
print(refused, ran)
"""


def _fuzz(file, seed, count):
    done = subprocess.run(
        [sys.executable, "-c", _FUZZ, str(file), str(seed), str(count)],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    refused, ran = map(int, done.stdout.split())
    assert refused + ran == count
    return refused


@pytest.mark.parametrize("seed", [1, 2])
def test_hostile_files_never_kill_the_process(small_file, seed):
    assert _fuzz(small_file, seed, 2000) > 0.3 * 2000


def test_hostile_files_with_squeezers_do_not_either(small_model, tmp_path):
    import tflite_export
    from tfdq.robustness import BitDepthSqueeze, MedianSqueeze, squeeze

    model = squeeze(small_model[0], [BitDepthSqueeze(4), MedianSqueeze(3)])
    exported = tflite_export.convert(model, calibration=small_model[2][:64])
    assert _fuzz(exported.save(tmp_path / "squeezed.tflite"), 3, 1500) > 0.3 * 1500


def _altered(name, **changes):
    """A graph with one tensor or option altered: (index of the tensor, attribute, value)."""
    graph = GRAPHS[name](1)
    for key, value in changes.items():
        if key == "options":
            operator = graph.operators[0]
            graph.operators[0] = dataclasses.replace(
                operator, options=dataclasses.replace(operator.options, **value)
            )
        elif key == "operator":
            graph.operators[0] = dataclasses.replace(graph.operators[0], **value)
        else:
            index = int(key.removeprefix("tensor"))
            graph.tensors[index] = dataclasses.replace(graph.tensors[index], **value)
    return graph


def _grid(scale, zero=0):
    return Quantization(np.array([scale], np.float32), np.array([zero], np.int64))


def _one_pixel_to(size):
    """A size where ten fraction bits do not suffice."""
    graph = _altered("resize_bilinear", options={"align_corners": False})
    constant = np.array([size, size], np.int32)
    graph.tensors[2] = dataclasses.replace(graph.tensors[2], data=constant)
    for index, side in ((0, 1), (1, size)):
        tensor = graph.tensors[index]
        graph.tensors[index] = dataclasses.replace(tensor, shape=(-1, side, side, tensor.shape[3]))
    return graph


def _size(batch, side):
    return np.array([batch, side, side, 3], np.int32)


_MARGINS = np.array([(0, 0), (6, 0), (0, 0), (0, 0)], np.int32)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (_altered("convolution", options={"stride_w": 0}), "stride"),
        (_altered("convolution", options={"activation": "TANH"}), "TANH"),
        (_altered("convolution", options={"dilation_h": 2**20}), "dilation"),
        (_altered("convolution", tensor0={"shape": (-1, 8, 8)}), "4 dimensions"),
        (_altered("convolution", tensor0={"quantization": None}), "one scale"),
        (_altered("convolution", tensor0={"quantization": _grid(np.nan)}), "positive"),
        (_altered("convolution", tensor0={"quantization": _grid(-1.0)}), "positive"),
        (_altered("convolution", tensor0={"quantization": _grid(0.1, 300)}), "zero point"),
        (_altered("convolution", tensor3={"quantization": _grid(1e-9)}), "kernels take up to"),
        (_altered("convolution", tensor0={"dtype": "float16"}), "float16"),
        (_altered("convolution", tensor3={"shape": (-1, 99, 99, 1)}), "expected"),
        (_altered("convolution", tensor0={"shape": (-1, 2**12, 2**12, 2**12)}), "larger than"),
        (_altered("convolution", operator={"inputs": (0, 1, 99)}), "reads tensor 99"),
        (_altered("convolution", operator={"inputs": (3, 1, 2)}), "before it is computed"),
        (_altered("convolution", operator={"outputs": (0,)}), "overwrites"),
        (_altered("convolution", operator={"inputs": (0,)}), "operands"),
        (_altered("convolution", operator={"kind": "WHILE"}), "WHILE"),
        (_altered("add", tensor1={"shape": (-1, 5, 5, 3)}), "differ"),
        (_altered("add", tensor2={"quantization": _grid(1e-5)}), "256"),
        (_altered("difference", tensor1={"shape": (-1, 3, 1, 7)}), "differ"),
        (_altered("difference", tensor1={"shape": (-1, 7)}), "fewer"),
        (_altered("transpose_conv", tensor4={"data": _size(2, 23)}), "batch of 2"),
        (_altered("transpose_conv", tensor4={"data": _size(1, 40)}), "a convolution makes"),
        (_altered("transpose_conv", tensor0={"shape": (-1, 7, 7, 1)}), "declares any"),
        (_altered("transpose_conv", options={"stride_h": 5, "padding": "SAME"}), "larger stride"),
        (_altered("transpose", tensor1={"data": np.array([1, 0, 2], np.int32)}), "moves the batch"),
        (_altered("transpose", tensor1={"data": np.array([0, 1, 1], np.int32)}), "not an order"),
        (_altered("squeeze", options={"squeeze_dims": ()}), "the batch of one sample among"),
        (_altered("squeeze", options={"squeeze_dims": (0,)}), "axis 0"),
        (_altered("strided_slice", options={"end_mask": 0}), "the batch is cut"),
        (_altered("strided_slice", options={"new_axis_mask": 2}), "new_axis_mask is 2"),
        (_altered("pack", options={"values_count": 9}), "announced"),
        (_altered("split", options={"num_splits": 9}), "announced"),
        (_altered("unpack", options={"num": 9}), "announced"),
        (_altered("gather", options={"batch_dims": 1}), "batch_dims is 1"),
        (_altered("gather", tensor0={"data": np.full((4,), 6, np.int32)}), "within"),
        (_altered("gather", tensor0={"data": np.full((4,), -1, np.int32)}), "within"),
        (_altered("space_to_depth", options={"block_size": 0}), "blocks of 0"),
        (_altered("reduce_max", tensor1={"data": np.array([0, 1], np.int32)}), "axis 0"),
        (_altered("padv2", tensor2={"quantization": _grid(9.0)}), "one scale"),
        (_altered("mean", tensor1={"data": np.array([0, 1], np.int32)}), "axis 0"),
        (_altered("resize_bilinear", options={"half_pixel_centers": True}), "exclude each other"),
        (_altered("resize_bilinear", tensor2={"data": np.array([0, 9], np.int32)}), "out of range"),
        (_one_pixel_to(97), "would read pixel 1, beyond"),
        (_altered("max_pool", options={"filter_h": 0}), "window"),
        (_altered("max_pool", tensor1={"quantization": _grid(9.0)}), "one scale and zero point"),
        (_altered("softmax", tensor1={"quantization": _grid(0.5)}), "1/256"),
        (_altered("softmax", options={"beta": float("inf")}), "beta"),
        (_altered("reshape", tensor1={"data": np.array([-1, 47], np.int32)}), "into"),
        (_altered("reshape", tensor1={"data": np.array([-1, -1], np.int32)}), "new shape"),
        (_altered("pad", tensor2={"data": np.full((4, 2), -1, np.int32)}), "out of range"),
        (_altered("pad", tensor2={"data": np.full((4, 2), 1, np.int32)}), "batch"),
        (_altered("mirror_pad", tensor2={"data": np.full((4, 2), 6, np.int32)}), "batch"),
        (_altered("mirror_pad", tensor2={"data": _MARGINS}), "mirror more"),
        (_altered("mirror_pad", tensor1={"quantization": _grid(9.0)}), "one scale"),
        (_altered("slice", tensor1={"data": np.array([1, 0, 0, 0], np.int32)}), "batch"),
        (_altered("slice", tensor1={"data": np.array([0, -1, 0, 0], np.int32)}), "not within"),
        (_altered("slice", tensor2={"data": np.array([-1, 8, 1, 1], np.int32)}), "not within"),
        (_altered("slice", tensor2={"data": np.array([-1, 0, 1, 1], np.int32)}), "not within"),
        (_altered("slice", tensor2={"dtype": "int64"}), "constant lists"),
        (_altered("slice", operator={"inputs": (0, 1)}), "operands"),
        (_altered("minimum", tensor1={"shape": (-1, 5, 5, 1)}), "differ"),
        (_altered("maximum", tensor1={"quantization": _grid(9.0)}), "one scale"),
        (_altered("concatenation", options={"axis": 0}), "axis"),
        (_altered("requantize", tensor0={"quantization": _grid(1e3, 3)}), "a step of the source"),
    ],
)
def test_graphs_that_make_no_sense_are_refused(graph, message):
    with pytest.raises(ValueError, match=message):
        check_graph(graph)
    try:
        content = write(graph)
    except (ValueError, IndexError):
        return
    with pytest.raises(ValueError):  # noqa: PT011 (the file's reader may say it in other words)
        validate(content)


def test_unknown_operators_are_named_all_at_once():
    graph = GRAPHS["maximum"](0)
    left, right, output = range(3)
    between = graph.add_tensor(dataclasses.replace(graph.tensors[output], name="between"))
    graph.operators = [
        Operator("LSTM", (left,), (between,), None),
        Operator("WHERE", (between, right), (output,), None),
    ]
    with pytest.raises(ValueError, match=r"0 \(LSTM\), .* 'between'; .* 1 \(WHERE\), .* 'y'"):
        check_graph(graph)


def test_unknown_operators_are_named_in_writing():
    graph = GRAPHS["convolution"](0)
    graph.operators[0] = Operator("LSTM", (0,), (3,), Convolution())
    with pytest.raises(ValueError, match="LSTM"):
        write(graph)


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        validate(tmp_path / "missing.tflite")
    with pytest.raises(TypeError, match="path or bytes"):
        validate(3)
    with pytest.raises(ValueError, match="not a TensorFlow Lite file"):
        validate(b"PK\x03\x04" + bytes(100))


def test_digest_is_of_the_file_without_itself():
    import hashlib

    content = write(GRAPHS["pad"](0))
    found = read(content).metadata[DIGEST_NAME]
    assert hashlib.sha256(content.replace(found, bytes(32))).digest() == found


def test_feeds_are_in_type():
    graph = GRAPHS["quantize_uint8"](0)
    assert feeds(graph, 2)[0].dtype == np.uint8


def test_a_kernel_set_without_an_operator_explains_no_deviation():
    graph = GRAPHS["elu"](0)
    values = feeds(graph, 4)
    (output,) = graph.outputs
    trained = run(graph, values, "xnnpack")[output]
    graph.metadata[GOLDEN_NAME] = pack_golden(GoldenVectors(values, [trained ^ 1]))
    found = selftest(write(graph))
    assert not found
    assert "xnnpack" in found.arithmetic
    assert "reference" not in found.arithmetic
