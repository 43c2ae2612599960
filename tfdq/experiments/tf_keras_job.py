"""Train the network of a run on tf_keras, on the devices of a strategy of tf.distribute."""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from tfdq.experiments.checkpoints import restore_newest
from tfdq.experiments.event_log import EventLog
from tfdq.experiments.job import MONITORED, Assignment, Job
from tfdq.experiments.networks import build
from tfdq.experiments.run_folder import CHECKPOINTS, kept_history
from tfdq.experiments.settings import RunSettings
from tfdq.experiments.strategy import training_batches
from tfdq.experiments.training import StopAtNaN, compile_for
from tfdq.penalties.callbacks import PenaltySchedule
from tfdq.penalties.schedules import Ramp
from tfdq.robustness import AdversarialTraining
from tfdq.robustness.catastrophic_overfitting import CatastrophicOverfittingMonitor
from tflite_export import round_biases

_DISK_TROUBLE = (
    "No space left",
    "Read-only file system",
    "Permission denied",
    "File too large",
    "Disk quota exceeded",
)


class TfKerasJob(Job):
    """One training: the model, its checkpoints, its log."""

    def __init__(self, given: Assignment) -> None:
        super().__init__(given)
        settings, seed = given.settings, given.seed
        folder, machines = given.folder, given.machines
        tf_keras.backend.clear_session()
        tf_keras.utils.set_random_seed(seed)
        # Dropout then draws from variables, which a checkpoint can hold.
        tf_keras.backend.experimental.enable_tf_random_generator()
        several = machines.replicas > 1
        # Under a strategy the same seed draws other weights: those of one device are taken.
        weights = self._build().get_weights() if several else None
        with precision(settings.training.precision), machines.strategy.scope():
            self.model = self._build(several)
            if weights is not None:
                self.model.set_weights(weights)
            self.fitted = wrapped(self.model, settings, seed)
            compile_for(self.fitted, settings.training, self.steps)
            self.fitted.optimizer.build(self.model.trainable_variables)
            self.position = tf.Variable(0, dtype=tf.int64, trainable=False)
            checkpoint = tf.train.Checkpoint(
                model=self.fitted,
                optimizer=self.fitted.optimizer,
                position=self.position,
                generators=_generators(self.model),
            )
            # Under a strategy every process takes part in saving; only the chief's is kept.
            name = CHECKPOINTS if machines.chief else f"{CHECKPOINTS}-{machines.worker}"
            self.manager = tf.train.CheckpointManager(checkpoint, folder / name, max_to_keep=2)
            restore_newest(checkpoint, folder / CHECKPOINTS)
        self.history = kept_history(folder, int(self.position.numpy()) // self.steps)
        self.log = EventLog(folder / "logs") if machines.chief else None

    def _build(self, synchronized: bool = False) -> tf_keras.Model:
        """Return the untrained network; asked for it, with BatchNorm over all replicas."""
        return build(self.settings, self.dataset, synchronized, self.trust)

    def run(self) -> None:
        """Train from where the checkpoint stands to the end."""
        epochs = self.settings.training.epochs
        at = int(self.position.numpy())
        while at < epochs * self.steps:
            epoch, within = divmod(at, self.steps)
            recorder = _Recorder(self, at)
            self.fitted.fit(
                training_batches(
                    self.settings.training, self.dataset, self.seed, at, self.machines
                ),
                steps_per_epoch=self.steps - within,
                initial_epoch=epoch,
                # What is left of an epoch is a fit of its own: its number of steps differs.
                epochs=epoch + 1 if within else epochs,
                callbacks=self._callbacks(recorder),
                verbose=0,
            )
            if self.fitted.stop_training:
                self.diverged()
            at = recorder.at

    def _callbacks(self, recorder: tf_keras.callbacks.Callback) -> list[Any]:
        callbacks: list[Any] = [StopAtNaN()]
        if self.fitted is not self.model:
            part = slice(MONITORED)
            images = self.dataset.x_train[part].astype(np.float32) / np.float32(255)
            callbacks.append(CatastrophicOverfittingMonitor(images, self.dataset.y_train[part]))
        penalty = self.settings.penalty
        if penalty.ramp is not None:
            callbacks.append(PenaltySchedule(Ramp(0.0, penalty.beta, *penalty.ramp)))
        return [*callbacks, recorder]

    def trained(self) -> tf_keras.Model:
        """Return the trained model, in float32 and for one device."""
        weights = self.model.get_weights()
        model = self._build()
        model.set_weights(weights)
        if self.settings.quantized:
            # So that the model that is kept, attacked and reported is the one that ships.
            round_biases(model)
        return model

    def clean_up(self) -> None:
        """Remove the checkpoints."""
        shutil.rmtree(self.manager.directory, ignore_errors=True)


class _Recorder(tf_keras.callbacks.Callback):
    """Write the history after every epoch, and checkpoints."""

    _supports_tf_logs = True

    def __init__(self, job: TfKerasJob, at: int) -> None:
        super().__init__()
        self.job = job
        self.at = at
        self.started = time.perf_counter()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Start the clock."""
        self.started = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Count the step; keep a checkpoint now and then."""
        self.at += 1
        within = self.at % self.job.steps
        if within and within % self.job.settings.training.checkpoint_steps == 0:
            self._save()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Write the epoch's figures, then the checkpoint that stands after them."""
        if self.at % self.job.steps:
            return
        row: dict[str, Any] = {name: float(value) for name, value in (logs or {}).items()}
        row["seconds"] = time.perf_counter() - self.started
        collapsed = getattr(self.job.fitted, "catastrophic_overfitting", ())
        if epoch in collapsed:
            row["catastrophic_overfitting"] = True
        self.job.keep(row)
        if self.job.log is not None:
            self.job.log.write(epoch, row)
        self._save()
        self.job.announce(epoch, row)

    def _save(self) -> None:
        self.job.position.assign(self.at)
        self.job.manager.save(checkpoint_number=self.at)


def _generators(model: tf_keras.Model) -> list[tf.random.Generator]:
    """Return the random generators of a model's layers; Keras leaves them out of checkpoints."""
    held = [getattr(layer, "_random_generator", None) for layer in model._flatten_layers()]
    for generator in held:
        if generator is not None:
            generator._maybe_init()
    found = [getattr(generator, "_generator", None) for generator in held]
    return [generator for generator in found if generator is not None]


def wrapped(model: tf_keras.Model, settings: RunSettings, seed: int) -> tf_keras.Model:
    """Return what is fitted: the model, or adversarial training of it."""
    attack = settings.adversarial
    if attack.attack == "none":
        return model
    return AdversarialTraining(
        model, attack.attack, attack.eps / 255, attack.ratio, steps=attack.steps, seed=seed
    )


@contextmanager
def precision(name: str) -> Iterator[None]:
    """Let models built inside compute in ``"float32"``, or mixed with a shorter type."""
    before = tf_keras.mixed_precision.global_policy()
    policy = name if name == "float32" else f"mixed_{name}"
    tf_keras.mixed_precision.set_global_policy(policy)
    try:
        yield
    finally:
        tf_keras.mixed_precision.set_global_policy(before)


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn what TensorFlow says of a full or read-only disk into an OSError."""
    try:
        yield
    except tf.errors.OpError as error:
        for trouble in _DISK_TROUBLE:
            if trouble in str(error):
                raise OSError(
                    errno.EIO,
                    f"cannot write to {str(folder)!r} ({trouble}); what was finished is kept: make "
                    "room, then start again",
                ) from error
        raise
