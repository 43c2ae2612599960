"""Train the network of a run so that a killed process goes on where it was, to the same weights."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from tfdq.data import Dataset
from tfdq.experiments.job import Assignment, Job
from tfdq.experiments.machines import Machines, check_batch
from tfdq.experiments.process import TF_KERAS
from tfdq.experiments.run_folder import describe, finished
from tfdq.experiments.settings import RunSettings


def train_run(
    settings: RunSettings,
    seed: int,
    dataset: Dataset,
    folder: Path,
    machines: Machines,
    on_epoch: Callable[[str], None] = lambda note: None,
    on_start: Callable[[int], None] = lambda epochs: None,
    add_figures: Callable[[Any], dict[str, Any]] = lambda model: {},
    trust: bool = False,
) -> dict[str, Any]:
    """Train the network of a run, resume its training, or return at once if it is finished.

    The folder gets ``settings.json``, ``environment.json``, TensorBoard's ``logs``,
    ``checkpoints`` while it trains, ``history.json`` after every epoch, and at the end
    ``model.keras`` and ``training.json``. A process that is killed at any moment and started again
    ends with the weights of one that was not: bit for bit on CPUs, given the same number of
    threads.

    Args:
        settings: of the run.
        seed: of initialisation, order, augmentation and adversarial starts.
        dataset: the images.
        folder: of the run; nobody else may write to it meanwhile.
        machines: the devices.
        on_epoch: called with a note after every epoch.
        on_start: called with the number of epochs that were finished before.
        add_figures: returns more for the record, of the trained model.
        trust: run code that the file of ``model.start`` holds.

    Returns:
        What ``training.json`` holds.

    Raises:
        DivergedError: the loss became NaN or infinite.
        ValueError: the folder is of another run, or the settings do not fit data or devices.
        OSError: the disk is full or the folder can't be written; what was finished is kept.
    """
    found = finished(folder)
    if found is not None:
        return found
    check_batch(settings, machines)
    folder.mkdir(parents=True, exist_ok=True)
    if machines.chief:
        describe(folder, settings, seed, machines)
    job_of, disk_errors = _job_of(settings.training.backend)
    with disk_errors(folder):
        job = job_of(Assignment(settings, seed, dataset, folder, machines, on_epoch, trust))
        on_start(len(job.history))
        job.run()
        return job.finish(add_figures)


def _job_of(backend: str) -> tuple[type[Job], Callable[[Path], AbstractContextManager[None]]]:
    """Return what trains on a backend, and what says what went wrong with the disk."""
    if backend == TF_KERAS:
        from tfdq.experiments.tf_keras_job import TfKerasJob, disk_errors

        return TfKerasJob, disk_errors
    from tfdq.experiments.keras3_job import Keras3Job

    # What it writes says itself what is wrong with the disk.
    return Keras3Job, lambda folder: nullcontext()
