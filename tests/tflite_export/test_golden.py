"""Golden vectors that are made for files of other makers."""

import json

import numpy as np
import pytest

from tests.tflite_export.graphs import GRAPHS
from tests.tflite_export.stock import converted, images, net
from tflite_export.__main__ import main
from tflite_export.files.read import read
from tflite_export.files.write import write
from tflite_export.runtime.device import selftest
from tflite_export.runtime.golden import with_golden
from tflite_export.runtime.interpreter import Interpreter


@pytest.fixture(scope="module", params=["int8", "float32"])
def theirs(request):
    return converted(net(), request.param)


def test_the_copy_is_the_file_with_golden_vectors(theirs):
    copy = with_golden(theirs, count=7)
    before, after = read(theirs), read(copy)
    assert after.operators == before.operators
    for old, new in zip(before.tensors, after.tensors, strict=True):
        assert (old.name, old.shape, old.dtype) == (new.name, new.shape, new.dtype)
        np.testing.assert_array_equal(old.data, new.data)
    assert before.metadata.items() <= after.metadata.items()
    golden = Interpreter(copy).golden()
    assert golden.count == 7
    values = golden.inputs[0]
    assert values.dtype == before.tensors[before.inputs[0]].dtype
    runtime = Interpreter(theirs)
    np.testing.assert_array_equal(runtime.integers(values), golden.outputs[0])
    assert selftest(copy)


def test_it_is_told_that_runtimes_agree_and_nothing_of_training(tmp_path, capsys, theirs):
    file, copy, real = (tmp_path / name for name in ("file.tflite", "copy.tflite", "real.npy"))
    file.write_bytes(theirs)
    np.save(real, images(net(), 9))
    command = ["selftest", str(file), "--make", "--out", str(copy), "--images", str(real)]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert said.startswith("PASS")
    assert "all 9 golden vectors give the integers of ai-edge-litert" in said
    assert "not with the network that was trained" in said
    golden = Interpreter(copy).golden()
    expected = Interpreter(theirs).integers(images(net(), 9))
    np.testing.assert_array_equal(golden.outputs[0], expected)
    assert main(["selftest", str(copy), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["source"].startswith("ai-edge-litert")
    damaged = bytearray(copy.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    copy.write_bytes(damaged)
    assert main(["selftest", str(copy)]) == 2
    assert "SHA-256" in capsys.readouterr().err


def test_another_kernel_set_is_told_apart():
    """A convolution's two roundings differ from XNNPACK's one on some integers."""
    copy = with_golden(write(GRAPHS["convolution"](2)), count=100)
    found = selftest(copy, kernels="reference")
    assert not found
    assert "are the integers of ai-edge-litert" in str(found)
    assert "not with the network that was trained" in str(found)
    assert "reference" in found.arithmetic


def test_mistakes_name_the_remedy(tmp_path, capsys, theirs):
    copy, file = str(tmp_path / "copy.tflite"), tmp_path / "file.tflite"
    file.write_bytes(with_golden(theirs))
    assert main(["selftest", str(file), "--make", "--out", copy]) == 2
    assert "golden vectors already; run selftest without --make" in capsys.readouterr().err
    assert main(["selftest", str(file), "--make"]) == 2
    assert "--out COPY.tflite" in capsys.readouterr().err
    assert main(["selftest", str(file), "--make", "--out", str(file)]) == 2
    assert "is the file itself" in capsys.readouterr().err
    assert main(["selftest", str(file), "--out", copy]) == 2
    assert "--make" in capsys.readouterr().err
    content = write(GRAPHS["relu"](0))
    with pytest.raises(ValueError, match="expected a whole number of at least 1"):
        with_golden(content, count=0)
    zeros = np.full((4, *read(content).tensors[0].shape[1:]), -128, np.int8)
    with pytest.raises(ValueError, match=r"the same on all 4 inputs.*--images"):
        with_golden(content, inputs=zeros)
