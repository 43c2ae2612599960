"""python -m tflite_export, and what it needs and does not need."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tflite_export.__main__ import main
from tflite_export.files.read import read


@pytest.fixture
def images(small_model, tmp_path):
    path = tmp_path / "images.npy"
    np.save(path, small_model[2][:20])
    return path


def test_run(small_model, small_file, images, tmp_path, capsys):
    assert main(["run", str(small_file), str(images), "--top", "2"]) == 0
    lines = capsys.readouterr().out.strip().split("\n")
    expected = small_model[1].interpreter().predict(small_model[2][:20])
    assert len(lines) == 20
    position, best, _ = lines[4].split("\t")
    assert position == "4"
    assert best.startswith(f"digit {expected[4].argmax()}:")
    output = tmp_path / "out.npy"
    assert main(["run", str(small_file), str(images), "--raw", "--out", str(output)]) == 0
    raw = small_model[1].interpreter().integers(small_model[2][:20])
    np.testing.assert_array_equal(np.load(output), raw)


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32"])
def test_images_on_another_scale_are_refused(dtype, small_file, small_model, tmp_path, capsys):
    path = tmp_path / "bytes.npy"
    np.save(path, (small_model[2][:20] * 255).astype(dtype))
    assert main(["run", str(small_file), str(path)]) == 2
    said = capsys.readouterr().err
    assert "divided by 255" in said
    assert said.count("\n") == 1
    # Noise may leave the range, and saturates.
    np.save(path, small_model[2][:20] * 1.5 - 0.2)
    assert main(["run", str(small_file), str(path)]) == 0


def test_benchmark(small_file, capsys):
    command = ["benchmark", str(small_file), str(small_file), "--calls", "20", "--threads", "1"]
    assert main([*command, "--batch-size", "1", "8"]) == 0
    lines = capsys.readouterr().out.strip().split("\n")
    assert lines[0].split()[-1] == "speed-up"
    assert len(lines) == 5
    # a file against itself, in turns: nearly the same time
    ratios = [float(line.split()[-1]) for line in lines[1:]]
    assert all(0.5 < ratio < 2.0 for ratio in ratios)
    assert "?" not in lines[1]


def test_benchmark_of_another_tools_file_is_timed_when_asked_for(tmp_path, capsys):
    import tensorflow as tf
    import tf_keras

    layers = [tf_keras.layers.Dense(4, "exponential", input_shape=(6,))]
    converter = tf.lite.TFLiteConverter.from_keras_model(tf_keras.Sequential(layers))
    path = tmp_path / "theirs.tflite"
    path.write_bytes(converter.convert())
    command = ["benchmark", str(path), "--calls", "3", "--threads", "1", "--batch-size", "1"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "EXP" in error
    assert "--any-operators" in error
    assert main([*command, "--any-operators"]) == 0
    assert "theirs.tflite" in capsys.readouterr().out


def test_inspect(small_model, small_file, capsys):
    assert main(["inspect", str(small_file)]) == 0
    text = capsys.readouterr().out
    assert "stem_conv" in text
    assert "4 bits used" in text
    assert "integer only" in text
    assert "MACs a sample" in text
    assert main(["inspect", str(small_file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["facts"]["clean_accuracy"] == 0.9
    stem = found["layers"][0]
    # 8x8 pixels, 16 channels, 3x3 window on one channel
    assert stem["macs"] == 8 * 8 * 16 * 9
    assert (stem["weight_bits"], stem["activation_bits"]) == (4, 4)


def test_inspect_for_a_microcontroller(small_file, tmp_path, capsys):
    array = tmp_path / "model.cc"
    assert main(["inspect", str(small_file), "--resolver", "--c-array", str(array)]) == 0
    lines = capsys.readouterr().out.splitlines()
    graph = read(small_file)
    methods = {re.fullmatch(r"ops\.Add(\w+)\(\);", line)[1] for line in lines[1:-1]}
    # Conv2D is CONV_2D: but for underscores and case the method has the operator's name.
    assert {m.upper() for m in methods} == {o.kind.replace("_", "") for o in graph.operators}
    assert f"<{len(methods)}>" in lines[0]
    assert main(["inspect", str(small_file), "--resolver", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["resolver"].splitlines() == lines[:-1]
    assert f"{found['arena_at_least']} bytes" in lines[-1]
    source = array.read_text()
    stored = bytes(int(byte, 16) for byte in re.findall(r"0x(\w\w)", source))
    assert stored == small_file.read_bytes()
    assert f"model_tflite_len = {len(stored)};" in source


def test_verify(small_model, small_file, tmp_path, images, capsys):
    assert main(["verify", str(small_file)]) == 0
    assert "100.0000%" in capsys.readouterr().out
    model = tmp_path / "model.keras"
    small_model[0].save(model)
    assert main(["verify", str(small_file), "--trained", str(model), "--images", str(images)]) == 0
    assert "model = twin" in capsys.readouterr().out


def test_selftest(small_file, capsys):
    assert main(["selftest", str(small_file)]) == 0
    assert capsys.readouterr().out.startswith("PASS")


def test_mistakes_are_told_in_one_line(tmp_path, capsys, small_file):
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(small_file.read_bytes()[:500])
    for command in ("selftest", "verify", "inspect"):
        assert main([command, str(broken)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
    assert main(["run", str(small_file), str(tmp_path / "none.npy")]) == 2


def test_json_of_every_command(small_model, small_file, images, capsys):
    expected = small_model[1].interpreter().predict(small_model[2][:20])
    file = str(small_file)
    assert main(["run", file, str(images), "--top", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found) == 20
    assert found[4][0] == {
        "class": f"digit {expected[4].argmax()}",
        "score": pytest.approx(float(expected[4].max())),
    }
    short = ["--calls", "5", "--batch-size", "1", "--threads", "1"]
    assert main(["benchmark", file, *short, "--json"]) == 0
    (timing,) = json.loads(capsys.readouterr().out)
    assert timing["size"] == small_file.stat().st_size
    assert main(["verify", file, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["exact"]
    assert found["integer_only"]["offenders"] == []
    assert found["parity"]["outputs"][0]["identical"] == 1.0
    assert main(["selftest", file, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passed"]


def process(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "tflite_export", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_stderr_holds_messages_only_and_quiet_none(small_file, images, tmp_path):
    """LiteRT's notice comes from compiled code: only a process of its own shows it."""
    outputs = tmp_path / "out.npy"
    for where in (("--quiet", "run"), ("run", "-q")):
        done = process(*where, small_file, images, "--out", outputs)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = process("run", small_file, images, "--out", outputs)
    assert done.stderr == f"20 outputs in {outputs}\n"
    done = process("--verbose", "run", small_file, images)
    assert "XNNPACK" in done.stderr
    short = ["--calls", "5", "--batch-size", "1", "--threads", "1"]
    assert process("benchmark", small_file, *short).stderr == "batch 1, 1 threads\n"
    assert process("benchmark", small_file, *short, "--quiet").stderr == ""


def test_statuses_beyond_mistakes(small_file, monkeypatch, capsys):
    from tflite_export.runtime import device

    def fail(error):
        def function(*_, **__):
            raise error

        monkeypatch.setattr(device, "selftest", function)

    fail(KeyboardInterrupt())
    assert main(["selftest", str(small_file)]) == 130
    assert capsys.readouterr().err.startswith("interrupted; ")

    def terminated(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    monkeypatch.setattr(device, "selftest", terminated)
    assert main(["selftest", str(small_file)]) == 143
    assert capsys.readouterr().err.startswith("terminated; nothing was written")
    # It is the command's alone: outside the process dies of it again.
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    fail(AttributeError("no x"))
    assert main(["selftest", str(small_file)]) == 3
    said = capsys.readouterr().err
    assert said.startswith("error: AttributeError: no x (a fault of")
    assert said.count("\n") == 1
    assert main(["selftest", str(small_file), "--debug"]) == 3
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert said.splitlines()[-1].startswith("error: AttributeError: no x")


def test_a_mistake_in_the_call_is_one_line(capsys):
    for arguments in (["run"], ["nonsense"], ["selftest", "x", "--kernels", "mine"], []):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert said.count("\n") == 1
        assert "--help" in said


def test_version(capsys):
    import tfdq

    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert not left.value.code
    assert capsys.readouterr().out.strip() == tfdq.__version__


_WITHOUT_TENSORFLOW = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "tf_keras", "keras", "tfdq"):
            raise ImportError(f"{name} must not be needed here")

sys.meta_path.insert(0, Refuse())
from tflite_export.__main__ import main
from tflite_export.files.read import read
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("command", ["run", "benchmark", "inspect", "selftest"])
def test_no_tensorflow_is_needed(command, small_file, images):
    arguments = [command, str(small_file)]
    if command == "run":
        arguments.append(str(images))
    if command == "benchmark":
        arguments += ["--calls", "5", "--batch-size", "1", "--threads", "1"]
    if command == "selftest":
        arguments += ["--kernels", "reference"]
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_TENSORFLOW, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in ((0, 1) if command == "selftest" else (0,)), done.stderr
    assert done.stdout


def test_verify_says_what_it_needs_where_there_is_no_tensorflow(small_file):
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_TENSORFLOW, "verify", str(small_file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "verify compares with the trained network and needs tfdq" in done.stderr
    assert "selftest" in done.stderr
    assert done.stderr.count("\n") == 1


def test_images_that_are_no_array_of_numbers_are_refused(small_file, images, tmp_path, capsys):
    np.savez(tmp_path / "images.npz", images=np.zeros((1, 8, 8, 1)))
    (tmp_path / "text.npy").write_text("hello")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    for name in ("images.npz", "text.npy", "objects.npy"):
        assert main(["run", str(small_file), str(tmp_path / name)]) == 2
        said = capsys.readouterr().err
        assert "is not a .npy file of numbers; write one with np.save" in said
        assert "pickle" not in said
    assert main(["run", str(small_file), str(images), "--top", "0"]) == 2
    assert "--top must be at least 1, got 0" in capsys.readouterr().err


def test_importing_the_package_loads_nothing_heavy():
    code = "import tflite_export, sys; print(sorted(m for m in sys.modules if 'tensorflow' in m))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_unknown_names_are_named():
    import tflite_export

    assert "convert" in dir(tflite_export)
    with pytest.raises(AttributeError, match="convert"):
        _ = tflite_export.deploy
