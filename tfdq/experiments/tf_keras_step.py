"""Time the training step of a network of tf_keras."""

from __future__ import annotations

from typing import Any

import tf_keras

from tfdq.data import Dataset, pipeline
from tfdq.experiments.networks import build
from tfdq.experiments.settings import RunSettings
from tfdq.experiments.stopwatch import median_seconds
from tfdq.experiments.tf_keras_job import precision, wrapped
from tfdq.experiments.training import compile_for


def measured_step(settings: RunSettings, dataset: Dataset) -> tuple[Any, float]:
    """Return the untrained network of a run, and the seconds of one of its training steps.

    Args:
        settings: of the run.
        dataset: its images.
    """
    tf_keras.backend.clear_session()
    with precision(settings.training.precision):
        model = build(settings, dataset)
        fitted = wrapped(model, settings, seed=0)
        compile_for(fitted, settings.training, 1)
    batches = iter(pipeline(dataset, settings.training.batch_size, settings.training.augment))
    train = fitted.make_train_function()
    return model, median_seconds(lambda: train(batches)["loss"].numpy())
