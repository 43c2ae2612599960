"""Settings that every test shares: a quiet TensorFlow, two threads, fixed seeds."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

from collections.abc import Iterator

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def _seeds() -> Iterator[None]:
    """Start every test from the same random state, in NumPy, Python and TensorFlow.

    Afterwards take back what the commands of the experiments switch on for their whole process.
    """
    import random
    import sys

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
