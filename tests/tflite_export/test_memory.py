"""Memory is that of the model: what a call adds, measured in a process of its own."""

import subprocess
import sys

import numpy as np
import pytest

from tflite_export.files.write import write
from tflite_export.ir.graph import FullyConnected
from tflite_export.runtime.memory import peak_memory

_SCRIPT = """
import numpy as np
from tflite_export.runtime.memory import added_peak
np.ones(1 << 26, np.uint8)                       # 64 MiB, gone again before the measure
print(added_peak(lambda: np.ones(1 << 25, np.uint8)))
print(added_peak(lambda: np.ones(1 << 25, np.uint8).sum()))
print(added_peak(lambda: None))
"""

linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is a lower bound")


@linux
def test_an_array_of_known_size_is_measured():
    done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, check=True)
    kept, transient, nothing = (float(line) for line in done.stdout.split())
    np.testing.assert_allclose([kept, transient], 32, atol=2)
    assert nothing < 2


def _dense(size, folder):
    from tests.tflite_export.graphs import Draw

    draw = Draw(0)
    source = draw.value("x", (-1, size))
    graph = draw.weighted("FULLY_CONNECTED", source, (size, size), 0, FullyConnected(), (-1, size))
    path = folder / f"{size}.tflite"
    path.write_bytes(write(graph))
    return path


@linux
def test_a_files_weights_are_measured_and_python_is_not(tmp_path):
    small, large = (peak_memory(_dense(size, tmp_path), 1, 1) for size in (32, 4096))
    assert small is not None
    assert large is not None
    # the file, its bytes held for the runtime, and the weights packed by XNNPACK: 16 MiB each
    assert 2 * 16 - 2 < large - small < 4 * 16
    assert small < 24


def test_a_file_that_does_not_run_has_no_measure(tmp_path):
    path = tmp_path / "broken.tflite"
    path.write_bytes(b"not a model")
    assert peak_memory(path, 1, 1) is None
