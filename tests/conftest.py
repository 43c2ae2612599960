"""Settings that every test shares: a quiet TensorFlow, two threads, fixed seeds."""

import contextlib
import ctypes
import gc
import os
import resource
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests import traced_graphs
from tests.exhaustive import pytest_collection_modifyitems  # noqa: F401 (pytest takes it from here)
from tests.skipped import pytest_terminal_summary  # noqa: F401 (pytest takes it from here)


@pytest.fixture(autouse=True)
def _seeds() -> Iterator[None]:
    """Start every test from the same random state, in NumPy, Python and TensorFlow.

    Afterwards take back what the commands of the experiments switch on for their whole process.
    """
    import random

    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (TensorFlow and Keras code draws from the legacy state)
    if "tensorflow" in sys.modules:
        sys.modules["tensorflow"].random.set_seed(0)
    yield
    if "tensorflow" in sys.modules:
        from tensorflow.python.framework import config

        if config.is_op_determinism_enabled():
            config.disable_op_determinism()
    if "tf_keras" in sys.modules:
        # With it Keras' initializers draw other weights from the same seed.
        sys.modules["tf_keras"].backend.experimental.disable_tf_random_generator()


_WORTH_FREEING = 256 * 2**20
"""Bytes by which a worker grows before the seconds that freeing takes are spent."""

_after_freeing = 0


def _memory_in_use() -> float:
    """Return the bytes that this process holds, or infinity where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return float("inf")


@pytest.fixture(autouse=True, scope="module")
def _memory() -> Iterator[None]:
    """Give back what files of tests leave in memory: Keras' graphs, models in circles of objects.

    Models that a session's fixtures hold stay as they are.
    """
    global _after_freeing
    yield
    if "tf_keras" in sys.modules:
        sys.modules["tf_keras"].backend.clear_session()
    if "keras" in sys.modules:
        sys.modules["keras"].utils.clear_session(free_memory=False)
    if _memory_in_use() < _after_freeing + _WORTH_FREEING:
        return
    gc.collect()
    if traced_graphs.release():
        gc.collect()
    # glibc keeps what was freed; a worker would hold the most that any of its files took.
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    _after_freeing = _memory_in_use()
