"""Time the training step of a network of Keras 3, on the backend that runs."""

from __future__ import annotations

import statistics
import time
from typing import Any

import keras
import numpy as np

from tfdq.data import Dataset
from tfdq.data.numpy_batches import NumpyBatches
from tfdq.experiments.keras3_training import compile_for, precision, wrapped
from tfdq.experiments.networks import build
from tfdq.experiments.settings import RunSettings
from tfdq.experiments.stopwatch import STEPS
from tfdq.robustness.keras3_adversarial_training import Keras3AdversarialTraining

# Those before are not timed: the first is traced, and JAX compiles the second anew.
_UNTIMED = 2


def measured_step(settings: RunSettings, dataset: Dataset) -> tuple[Any, float]:
    """Return the network of a run, and the seconds of one of its training steps.

    It has been trained for a few steps.

    Args:
        settings: of the run.
        dataset: its images.
    """
    training = settings.training
    keras.utils.clear_session()
    batches = NumpyBatches(dataset, training.batch_size, training.augment)
    with precision(training.precision):
        model = build(settings, dataset)
        fitted = wrapped(model, settings, 0, batches.steps)
    compile_for(fitted, training, batches.steps)
    if isinstance(fitted, Keras3AdversarialTraining) and fitted.attack == "free":
        fitted.make_perturbation(training.batch_size)
    clock = _Clock()
    few = _FirstBatches(batches, _UNTIMED + STEPS)
    fitted.fit(few, callbacks=[clock], shuffle=False, verbose=0)
    return model, statistics.median(np.diff(clock.times)[-STEPS:])


class _FirstBatches(keras.utils.PyDataset):
    """The first batches of a training."""

    def __init__(self, batches: NumpyBatches, count: int) -> None:
        super().__init__()
        self.batches, self.count = batches, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.batches[index]


class _Clock(keras.callbacks.Callback):
    """Notes when each step has ended."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Wait for the loss, as a training does that watches for NaN."""
        float((logs or {})["loss"])
        self.times.append(time.perf_counter())
