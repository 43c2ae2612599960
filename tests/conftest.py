"""Settings that every test shares: a quiet TensorFlow, two threads, fixed seeds."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """Start every test from the same random state, in NumPy, Python and TensorFlow."""
    import random
    import sys

    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (TensorFlow and Keras code draws from the legacy state)
    if "tensorflow" in sys.modules:
        sys.modules["tensorflow"].random.set_seed(0)
