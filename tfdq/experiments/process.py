"""What this process computes with: the Keras of a run, its backend, threads and devices."""

from __future__ import annotations

import importlib
import os
import resource
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tfdq.robustness.versions import package_versions
from tfdq.which_keras import installed
from tflite_export.runtime.interpreter import check_threads

TF_KERAS = "tf_keras"


def choose_backend(backends: Iterable[str]) -> str:
    """Set the backend of Keras 3 that runs ask for; call it before Keras is imported.

    Args:
        backends: of the runs that this process will train or measure (`training.backend`):
            `"tf_keras"`, `"tensorflow"`, `"jax"` or `"torch"`.

    Returns:
        What they are trained on: one of these names.

    Raises:
        ValueError: the runs name several, or Keras runs on another backend already.
        ImportError: the backend is not installed.
    """
    wanted = sorted(set(backends))
    if len(wanted) > 1:
        raise ValueError(
            f"one process trains on one backend, and these runs name {' and '.join(wanted)}: give "
            "one for all with --backend, or some of the variants with --only"
        )
    (backend,) = wanted
    if backend == TF_KERAS:
        if not installed(TF_KERAS):
            raise ImportError(
                "training.backend is tf_keras, which is not installed: pip install "
                '"tfdq[tensorflow]", or train on Keras 3: --backend jax or --backend torch'
            )
        return backend
    if "keras" in sys.modules:
        running = importlib.import_module("keras").backend.backend()
        if running != backend:
            raise ValueError(
                f"Keras runs on the {running} backend already, and training.backend is {backend}: "
                f"start a new process with KERAS_BACKEND={backend} in the environment"
            )
        return backend
    if not installed(backend):
        raise ImportError(
            f'training.backend is {backend}, which is not installed: pip install "tfdq[{backend}]"'
        )
    os.environ["KERAS_BACKEND"] = backend
    return backend


def prepare_process(threads: int | None = None, backend: str = TF_KERAS) -> None:
    """Make the backend repeat itself bit for bit on the CPU, with a given number of threads.

    Call it before anything else of the backend is used.

    Args:
        threads: for each operation and between operations, >= 1; None: the backend's choice.
        backend: what is trained on, as `choose_backend` returns it. JAX has no number of threads
            to set.

    Raises:
        ValueError: ``threads`` is below 1, or too large; or the backend is JAX.
        RuntimeError: TensorFlow is in use already.
    """
    if threads is not None:
        check_threads(threads)
        if backend == "jax":
            raise ValueError(
                f"JAX takes all the cores that the process may use, not --threads {threads}: leave "
                "it out, and start the process with taskset or numactl for fewer cores"
            )
    if backend == "torch":
        torch = importlib.import_module("torch")
        torch.use_deterministic_algorithms(True)
        if threads is not None:
            torch.set_num_threads(threads)
    elif backend != "jax":
        tf = importlib.import_module("tensorflow")
        if threads is not None:
            tf.config.threading.set_intra_op_parallelism_threads(threads)
            tf.config.threading.set_inter_op_parallelism_threads(threads)
        tf.config.experimental.enable_op_determinism()


def threads_of(backend: str) -> int:
    """Return how many threads an operation of the backend takes."""
    if backend == "torch":
        return int(importlib.import_module("torch").get_num_threads())
    chosen = 0
    if backend != "jax":
        tf = importlib.import_module("tensorflow")
        chosen = tf.config.threading.get_intra_op_parallelism_threads()
    return chosen or os.cpu_count() or 1


def devices_of(backend: str) -> list[str]:
    """Return the kinds of the devices that the backend sees, such as ``["CPU"]``."""
    if backend == "jax":
        return [device.platform.upper() for device in importlib.import_module("jax").devices()]
    if backend == "torch":
        cuda = importlib.import_module("torch").cuda
        return ["GPU"] * cuda.device_count() or ["CPU"]
    tf = importlib.import_module("tensorflow")
    return [device.device_type for device in tf.config.list_logical_devices()]


def memory_of(backend: str) -> int:
    """Return the largest use of memory so far, in bytes: of the first GPU, or of the process."""
    if backend == "jax":
        device = importlib.import_module("jax").devices()[0]
        if device.platform == "gpu":
            return int(device.memory_stats()["peak_bytes_in_use"])
    elif backend == "torch":
        cuda = importlib.import_module("torch").cuda
        if cuda.is_available():
            return int(cuda.max_memory_allocated())
    else:
        config = importlib.import_module("tensorflow").config
        if config.list_physical_devices("GPU"):
            return int(config.experimental.get_memory_info("GPU:0")["peak"])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def versions_of(backend: str) -> dict[str, Any]:
    """Return the versions of the packages that a run on the backend computes with, by name."""
    found: dict[str, Any] = package_versions()
    if backend in ("jax", "torch"):
        try:
            found[backend] = version(backend)
        except PackageNotFoundError:
            found[backend] = "not installed"
    return found


def forget_networks(backend: str) -> None:
    """Let Keras forget the networks built so far, whose traced functions fill the memory."""
    importlib.import_module(TF_KERAS if backend == TF_KERAS else "keras").backend.clear_session()
