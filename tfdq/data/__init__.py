"""Image data sets as NumPy arrays, and the tf.data pipeline that feeds them to training.

`load` reads a data set by name or path; `pipeline` turns it into batches. Both are loaded on first
use; importing this package does not import TensorFlow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfdq.data.batches import pipeline, steps_per_epoch
    from tfdq.data.dataset import Dataset
    from tfdq.data.loading import load, names

__all__ = ["Dataset", "load", "names", "pipeline", "steps_per_epoch"]

_HOME = {
    "Dataset": "tfdq.data.dataset",
    "load": "tfdq.data.loading",
    "names": "tfdq.data.loading",
    "pipeline": "tfdq.data.batches",
    "steps_per_epoch": "tfdq.data.batches",
}


def __getattr__(name: str) -> Any:
    """Import the module a public name lives in when the name is first used (PEP 562)."""
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
