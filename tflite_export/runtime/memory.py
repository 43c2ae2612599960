"""The memory that a model takes: what loading and running it adds to the process."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_CLEAR_PEAK = "5"
_CHILD = """
import sys
from tflite_export.ir.limits import UNLIMITED
from tflite_export.runtime.memory import added_peak
from tflite_export.runtime.interpreter import Interpreter, find_runtime
from tflite_export.runtime.timing import random_feeds
path, threads, batch, kernels, runtime = sys.argv[1:]
find_runtime(runtime or None)
def run():
    model = Interpreter(
        path,
        threads=int(threads),
        kernels=kernels,
        runtime=runtime or None,
        trusted=True,
        limits=UNLIMITED,
    )
    model.invoke(random_feeds(model, int(batch)))
    return model
print(added_peak(run))
"""


def added_peak(action: Callable[[], object]) -> float:
    """How far a call takes the process' memory above what it held before.

    On Linux the kernel's record of the peak is set back first. Elsewhere the record can hide
    behind an earlier peak, such as that of the imports, and the result is a lower bound.

    Args:
        action: what to call; what it returns is kept until the measure is taken.

    Returns:
        MiB of resident memory.
    """
    gc.collect()
    if _STATUS.exists() and os.access(_CLEAR, os.W_OK):
        _CLEAR.write_text(_CLEAR_PEAK)
        before = _status("VmRSS")
        kept = action()
        after = _status("VmHWM")
    else:
        before = _largest()
        kept = action()
        after = _largest()
    del kept
    return max(after - before, 0.0)


def peak_memory(
    file: Path, threads: int, batch: int, kernels: str = "default", runtime: str | None = None
) -> float | None:
    """The peak memory that loading a file and running it once adds to a fresh process.

    Python, NumPy and the runtime's library are loaded before and do not count; the file, the
    weights as the kernels pack them, and the activations do.

    Args:
        file: the ``.tflite`` file.
        threads: threads of the runtime.
        batch: samples in the call.
        kernels: as for `Interpreter`.
        runtime: as for `Interpreter`.

    Returns:
        MiB; None where it can't be measured.
    """
    arguments = [str(file), str(threads), str(batch), kernels, runtime or ""]
    home = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(p for p in (home, os.environ.get("PYTHONPATH", "")) if p)
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    return float(done.stdout) if done.returncode == 0 else None


def _status(field: str) -> float:
    """A size in ``/proc/self/status``, MiB."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return float(line.split()[1]) / 1024.0
    return 0.0


def _largest() -> float:
    """The largest resident memory so far, MiB."""
    if sys.platform == "win32":
        return 0.0
    import resource

    unit = 1024.0**2 if sys.platform == "darwin" else 1024.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
