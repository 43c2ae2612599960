"""Train the network of a run on Keras 3, on TensorFlow, JAX or PyTorch."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from tfdq.data.numpy_batches import NumpyBatches
from tfdq.experiments.images import scaled
from tfdq.experiments.job import MONITORED, Assignment, Job
from tfdq.experiments.keras3_checkpoints import ArrayCheckpoints, from_bfloat16, to_bfloat16
from tfdq.experiments.keras3_training import (
    Batches,
    Epochs,
    compile_for,
    estimate_statistics,
    precision,
    wrapped,
)
from tfdq.experiments.networks import build
from tfdq.experiments.run_folder import CHECKPOINTS, kept_history
from tfdq.robustness.keras3_adversarial_training import (
    Keras3AdversarialTraining,
    Keras3OverfittingMonitor,
)

# Training images that the statistics of averaged weights are estimated on.
_STATISTICS = 4096
# The largest share of the training images that tells when to stop.
_MOST_HELD_OUT = 0.2


class Keras3Job(Job):
    """One training on the backend that Keras runs on."""

    def __init__(self, given: Assignment) -> None:
        settings, seed, dataset = given.settings, given.seed, given.dataset
        monitored = dataset.x_train[:MONITORED], dataset.y_train[:MONITORED]
        if settings.adversarial.patience is not None:
            # What tells when to stop must not have been trained on.
            share = min(MONITORED / len(dataset.y_train), _MOST_HELD_OUT)
            parted = dataset.held_out(share)
            monitored = parted.x_test, parted.y_test
            dataset = replace(parted, x_test=dataset.x_test, y_test=dataset.y_test)
        super().__init__(replace(given, dataset=dataset))
        training = settings.training
        self.batches = NumpyBatches(
            dataset, training.batch_size, training.augment, seed, training.cutout
        )
        keras.utils.clear_session()
        keras.utils.set_random_seed(seed)
        with precision(training.precision):
            self.model = build(settings, dataset, trust=given.trust)
            self.fitted = wrapped(self.model, settings, seed, self.steps)
        compile_for(self.fitted, training, self.steps)
        self.watch: Keras3OverfittingMonitor | None = None
        if isinstance(self.fitted, Keras3AdversarialTraining):
            images, labels = monitored
            self.watch = Keras3OverfittingMonitor(
                scaled(images), labels, patience=settings.adversarial.patience
            )
            if self.fitted.attack == "free":
                self.fitted.make_perturbation(training.batch_size)
        self.fitted.optimizer.build(self.fitted.trainable_variables)
        self.checkpoints = ArrayCheckpoints(given.folder / CHECKPOINTS)
        self.position = 0
        self.restore()
        self.history = kept_history(given.folder, self.position // self.steps)
        self.log = _event_log(given.folder)

    def _state(self) -> list[Any]:
        """Return the variables that a training goes on from."""
        every = [*self.fitted.variables, *self.fitted.optimizer.variables]
        return list({id(variable): variable for variable in every}.values())

    def save(self, position: int) -> None:
        """Keep a checkpoint.

        Args:
            position: number of steps so far.
        """
        # While `fit` runs on JAX, the variables are not up to date.
        getattr(self.fitted, "jax_state_sync", lambda: None)()
        self.position = position
        arrays = {
            f"variable_{number}": ops.convert_to_numpy(variable)
            for number, variable in enumerate(self._state())
        }
        if self.settings.training.checkpoint_precision == "bfloat16":
            shortened = {id(variable) for variable in self.fitted.optimizer.variables}
            for number, variable in enumerate(self._state()):
                values = arrays[f"variable_{number}"]
                # The rate and the number of the step are scalars.
                if id(variable) in shortened and values.ndim and values.dtype == np.float32:
                    arrays[f"variable_{number}"] = to_bfloat16(values)
        arrays["position"] = np.asarray(position)
        if self.watch is not None:
            arrays |= {f"watch_{name}": value for name, value in self.watch.progress().items()}
        self.checkpoints.save(position, arrays)

    def restore(self) -> None:
        """Go back to the newest checkpoint, if there is one.

        Raises:
            ValueError: none can be read, or they are of another network.
        """
        found = self.checkpoints.newest()
        if found is None:
            return
        variables = self._state()
        names = [f"variable_{number}" for number in range(len(variables))]
        values = [found[name] for name in names if name in found]
        fits = (
            len(values) == len(variables)
            and f"variable_{len(variables)}" not in found
            and all(
                value.shape == tuple(variable.shape)
                for value, variable in zip(values, variables, strict=True)
            )
        )
        if not fits:
            raise ValueError(
                f"the checkpoints in {str(self.checkpoints.folder)!r} are of another network: "
                "remove the folder, and the same command trains again from the start"
            )
        for value, variable in zip(values, variables, strict=True):
            variable.assign(from_bfloat16(value) if value.dtype == np.uint16 else value)
        self.position = int(found["position"])
        if self.watch is not None:
            names = [name for name in found if name.startswith("watch_")]
            self.watch.go_on({name.removeprefix("watch_"): found[name] for name in names})

    def run(self) -> None:
        """Train from where the checkpoint stands to the end."""
        epochs = self.settings.training.epochs
        while self.position < epochs * self.steps and not self._at_its_best():
            epoch, within = divmod(self.position, self.steps)
            recorder = _Recorder(self)
            self.fitted.fit(
                recorder.batches,
                initial_epoch=epoch,
                # What is left of an epoch is a fit of its own: its number of steps differs.
                epochs=epoch + 1 if within else epochs,
                callbacks=[*([] if self.watch is None else [self.watch]), recorder],
                shuffle=False,
                verbose=0,
            )
            if recorder.diverged:
                self.diverged()
            # `fit` puts averaged weights, or the best, in their place whenever it ends.
            self.restore()

    def _at_its_best(self) -> bool:
        return self.watch is not None and self.watch.is_out_of_patience

    def trained(self) -> keras.Model:
        """Return the trained model, in float32."""
        training = self.settings.training
        if training.average:
            self.fitted.optimizer.finalize_variable_values(self.fitted.trainable_variables)
            draw = np.random.default_rng(0).permutation(len(self.dataset.y_train))[:_STATISTICS]
            estimate_statistics(self.model, scaled(self.dataset.x_train[draw]), training.batch_size)
        elif self.watch is not None and self.watch.best_weights is not None:
            self.fitted.set_weights(self.watch.best_weights)
        weights = self.model.get_weights()
        model = build(self.settings, self.dataset, trust=self.trust)
        model.set_weights(weights)
        return model

    def clean_up(self) -> None:
        """Remove the checkpoints."""
        shutil.rmtree(self.checkpoints.folder, ignore_errors=True)


class _Recorder(Epochs):
    """Write the history after every epoch, and checkpoints."""

    def __init__(self, job: Keras3Job) -> None:
        super().__init__(Batches(job.batches, job.position))
        self.job = job
        self.at = job.position
        self.started = time.perf_counter()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Start the clock."""
        super().on_epoch_begin(epoch, logs)
        self.started = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Count the step; keep a checkpoint now and then."""
        super().on_train_batch_end(batch, logs)
        self.at += 1
        within = self.at % self.job.steps
        every = self.job.settings.training.checkpoint_steps
        if within and within % every == 0 and not self.diverged:
            self.job.save(self.at)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Write the epoch's figures, then the checkpoint that stands after them."""
        if self.at % self.job.steps or self.diverged:
            return
        row: dict[str, Any] = {name: float(value) for name, value in (logs or {}).items()}
        row["seconds"] = time.perf_counter() - self.started
        if epoch in getattr(self.job.fitted, "catastrophic_overfitting", ()):
            row["catastrophic_overfitting"] = True
        self.job.keep(row)
        if self.job.log is not None:
            self.job.log.write(epoch, row)
        self.job.save(self.at)
        self.job.announce(epoch, row)


def _event_log(folder: Path) -> Any:
    """Return TensorBoard's log, which TensorFlow writes; None on the other backends."""
    if keras.backend.backend() != "tensorflow":
        return None
    from tfdq.experiments.event_log import EventLog

    return EventLog(folder / "logs")
