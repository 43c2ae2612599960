"""The runtime half on boards: fresh environments without TensorFlow, built with pip and used."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.tflite_export.graphs import GRAPHS, feeds, lacking
from tflite_export.files.write import write
from tflite_export.runtime.reference import run

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = {
    "ai-edge-litert": ["ai-edge-litert>=2.3,<3", "numpy"],
    "tflite-runtime": ["tflite-runtime==2.14.0", "numpy<2"],
}

pytestmark = pytest.mark.environments


@pytest.fixture(scope="module", params=ENVIRONMENTS)
def board(request, tmp_path_factory):
    """(name of the runtime, Python of an environment with it and NumPy only)."""
    if request.param == "tflite-runtime" and sys.version_info >= (3, 12):
        pytest.skip("tflite-runtime 2.14 has no wheel for this Python")
    home = tmp_path_factory.mktemp(request.param)
    subprocess.run([sys.executable, "-m", "venv", home / "env"], check=True)
    python = home / "env" / "bin" / "python"
    packages = ENVIRONMENTS[request.param]
    command = [python, "-m", "pip", "install", "-q", "--no-input", *packages]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        hint = "deselect with -m 'not environments'"
        pytest.fail(f"pip could not install {packages} ({hint}):\n{done.stderr}")
    site = next((home / "env" / "lib").glob("python3*/site-packages"))
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "tflite_export", site / "tflite_export", ignore=ignore)
    return request.param, python


def _call(python, *arguments, cwd):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        [python, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        check=False,
    )


def test_there_is_no_tensorflow(board, tmp_path):
    _, python = board
    for package in ("tensorflow", "tf_keras", "tfdq"):
        assert _call(python, "-c", f"import {package}", cwd=tmp_path).returncode


@pytest.mark.parametrize("interface", ["int8", "uint8", "float32"])
def test_run_gives_the_integers_of_its_kernel_set(board, small_model, tmp_path, interface):
    import tflite_export

    name, python = board
    qat, _, images, _ = small_model
    exported = tflite_export.convert(qat, input_type=interface, calibration=images[:64])
    path = exported.save(tmp_path / "model.tflite")
    np.save(tmp_path / "images.npy", images)
    command = ["-m", "tflite_export", "run", path, "images.npy", "--raw", "--out", "out.npy"]
    done = _call(python, *command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    kernels = "builtin-2.14" if name == "tflite-runtime" else "xnnpack"
    expected = exported.twin(kernels=kernels).integers(images).numpy()
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected)


_OPERATORS = """
import pathlib
import numpy as np
from tflite_export import Interpreter
for path in sorted(pathlib.Path(".").glob("*.tflite")):
    feeds = np.load(path.with_suffix(".npz"))
    model = Interpreter(path, batch_size=9)
    np.save(path.stem + "_out.npy", model.invoke([feeds[n] for n in sorted(feeds.files)])[0])
"""


def test_every_operator_is_that_of_its_kernel_set(board, tmp_path):
    """The kernels of tflite-runtime 2.14 are in no test but this."""
    name, python = board
    kernels = "builtin-2.14" if name == "tflite-runtime" else "xnnpack"
    expected = {}
    for kind, draw in GRAPHS.items():
        if kind in ("dequantize", "dequantize_int16", "convolution_int4", "depthwise_int4"):
            continue  # floats out; 2.14 knows no int4
        for seed in range(4):
            graph = draw(seed)
            if any(kernels in found for found in lacking(graph)):
                continue
            values = feeds(graph, 9, seed)
            stem = f"{kind}_{seed}"
            (tmp_path / f"{stem}.tflite").write_bytes(write(graph))
            np.savez(tmp_path / f"{stem}.npz", **{f"{i:02}": v for i, v in enumerate(values)})
            expected[stem] = run(graph, values, kernels)[graph.outputs[0]]
    done = _call(python, "-c", _OPERATORS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for stem, values in expected.items():
        found = np.load(tmp_path / f"{stem}_out.npy")
        np.testing.assert_array_equal(found, values, err_msg=stem)


def test_benchmark_and_inspect(board, small_file, tmp_path):
    _, python = board
    command = ["benchmark", small_file, "--calls", "20", "--threads", "1", "--batch-size", "1", "8"]
    done = _call(python, "-m", "tflite_export", *command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.strip().split("\n")
    assert len(lines) == 3
    assert float(lines[1].split()[3]) > 0
    done = _call(python, "-m", "tflite_export", "inspect", small_file, cwd=tmp_path)
    assert "stem_conv" in done.stdout


def test_self_test_tells_the_kernels_apart(board, small_model, small_file, tmp_path):
    name, python = board
    done = _call(python, "-m", "tflite_export", "selftest", small_file, cwd=tmp_path)
    golden = small_model[2][:24]
    if name == "ai-edge-litert":
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("PASS")
        return
    exported = small_model[1]
    twins = [exported.twin(kernels=k).integers(golden).numpy() for k in ("xnnpack", "builtin-2.14")]
    if np.array_equal(*twins):
        assert done.returncode == 0
    else:
        assert done.returncode == 1
        assert "builtin-2.14" in done.stdout
        assert "CONV_2D" in done.stdout


def test_damage_is_found_there_too(board, small_file, tmp_path):
    _, python = board
    content = bytearray(small_file.read_bytes())
    content[len(content) // 2] ^= 4
    (tmp_path / "damaged.tflite").write_bytes(content)
    done = _call(python, "-m", "tflite_export", "selftest", "damaged.tflite", cwd=tmp_path)
    assert done.returncode == 2
    assert "SHA-256" in done.stderr
