"""Image data sets as NumPy arrays, and the tf.data pipeline that feeds them to training.

`load` reads a data set by name or path; `pipeline` turns it into batches. Both are loaded on first
use; importing this package does not import TensorFlow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tfdq._first_use import loaded_on_first_use

if TYPE_CHECKING:
    from tfdq.data.batches import pipeline
    from tfdq.data.dataset import Dataset
    from tfdq.data.loading import load, names
    from tfdq.data.steps import steps_per_epoch

__all__ = ["Dataset", "load", "names", "pipeline", "steps_per_epoch"]

_HOME = {
    "Dataset": "tfdq.data.dataset",
    "load": "tfdq.data.loading",
    "names": "tfdq.data.loading",
    "pipeline": "tfdq.data.batches",
    "steps_per_epoch": "tfdq.data.steps",
}

__getattr__, __dir__ = loaded_on_first_use(__name__, _HOME)
