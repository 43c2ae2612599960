"""Train the network of a run so that a killed process goes on where it was, to the same weights."""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from tfdq.data import Dataset, steps_per_epoch
from tfdq.experiments.checkpoints import restore_newest
from tfdq.experiments.event_log import EventLog
from tfdq.experiments.folder import write_json
from tfdq.experiments.networks import build, weights_digest
from tfdq.experiments.settings import RunSettings
from tfdq.experiments.strategy import Machines, check_batch, training_batches
from tfdq.experiments.training import DivergedError, StopAtNaN, compile_for
from tfdq.penalties.callbacks import PenaltySchedule
from tfdq.penalties.schedules import Ramp
from tfdq.robustness import AdversarialTraining
from tfdq.robustness.catastrophic_overfitting import CatastrophicOverfittingMonitor
from tfdq.robustness.json_files import Entries, naming, read_json, text_of
from tfdq.robustness.versions import package_versions
from tflite_export import round_biases
from tflite_export.runtime.interpreter import check_threads

MODEL = "model.keras"
RECORD = "training.json"
_HISTORY = "history.json"
CHECKPOINTS = "checkpoints"
_ENTRIES: Entries = {"weights": str, "seconds": (int, float), "history": list, "data": dict}
_TRAIN_AGAIN = "remove it, and the same command trains again"
_MONITORED = 256
_DISK_TROUBLE = (
    "No space left",
    "Read-only file system",
    "Permission denied",
    "File too large",
    "Disk quota exceeded",
)


def train_run(
    settings: RunSettings,
    seed: int,
    dataset: Dataset,
    folder: Path,
    machines: Machines,
    on_epoch: Callable[[str], None] = lambda note: None,
    on_start: Callable[[int], None] = lambda epochs: None,
    add_figures: Callable[[tf_keras.Model], dict[str, Any]] = lambda model: {},
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
        _describe(folder, settings, seed, machines)
    with _disk_errors(folder):
        job = _Job(settings, seed, dataset, folder, machines, on_epoch, trust)
        on_start(len(job.history))
        job.run()
        return job.finish(add_figures)


def finished(folder: Path, entries: Entries | None = None) -> dict[str, Any] | None:
    """Return the record of the training that was finished in a folder; None: it was not.

    Args:
        folder: of the training.
        entries: names that the record must have besides those that each has, with their types.

    Raises:
        DivergedError: it was, by diverging.
        ValueError: the record is damaged.
    """
    record = folder / RECORD
    if not record.exists():
        return None
    found = read_record(record, entries)
    if found.get("diverged"):
        raise DivergedError(str(found["diverged"]))
    return found


def read_record(path: Path, entries: Entries | None = None) -> dict[str, Any]:
    """Return what a ``training.json`` holds.

    Args:
        path: the file.
        entries: as for `finished`; a training that diverged has none of them.

    Raises:
        ValueError: the file is damaged.
    """
    found = read_json(path, _TRAIN_AGAIN)
    if found.get("diverged"):
        return found
    return read_json(path, _TRAIN_AGAIN, {**_ENTRIES, **(entries or {})})


def prepare_process(threads: int | None = None) -> None:
    """Make TensorFlow repeat itself bit for bit, with a given number of threads.

    Call it before anything else of TensorFlow is used.

    Args:
        threads: for each operation and between operations, >= 1; None: TensorFlow's choice.

    Raises:
        ValueError: ``threads`` is below 1, or too large.
        RuntimeError: TensorFlow is in use already.
    """
    if threads is not None:
        check_threads(threads)
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    tf.config.experimental.enable_op_determinism()


class _Job:
    """One training: the model, its checkpoints, its log."""

    def __init__(
        self,
        settings: RunSettings,
        seed: int,
        dataset: Dataset,
        folder: Path,
        machines: Machines,
        on_epoch: Callable[[str], None],
        trust: bool,
    ) -> None:
        self.settings, self.seed, self.dataset = settings, seed, dataset
        self.folder, self.machines = folder, machines
        self.tell, self.trust = on_epoch, trust
        self.steps = steps_per_epoch(dataset, settings.training.batch_size)
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
        self.history = self._kept_history()
        self.log = EventLog(folder / "logs") if machines.chief else None

    def _build(self, synchronized: bool = False) -> tf_keras.Model:
        """Return the untrained network; asked for it, with BatchNorm over all replicas."""
        return build(self.settings, self.dataset, synchronized, self.trust)

    def _kept_history(self) -> list[dict[str, Any]]:
        """Return the epochs that the checkpoint stands after."""
        path = self.folder / _HISTORY
        if not path.exists():
            return []
        epochs = int(self.position.numpy()) // self.steps
        remedy = "remove the folder, and the same command trains again from the start"
        with naming(path, remedy):
            rows = json.loads(text_of(path))
            if not isinstance(rows, list) or not all("seconds" in row for row in rows):
                raise TypeError("it holds no list of epochs")
            if len(rows) < epochs:
                raise ValueError(f"it has {len(rows)} epochs, the checkpoint {epochs}")
        return rows[:epochs]

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
                self._diverged()
            at = recorder.at

    def _callbacks(self, recorder: tf_keras.callbacks.Callback) -> list[Any]:
        callbacks: list[Any] = [StopAtNaN()]
        if self.fitted is not self.model:
            part = slice(_MONITORED)
            images = self.dataset.x_train[part].astype(np.float32) / np.float32(255)
            callbacks.append(CatastrophicOverfittingMonitor(images, self.dataset.y_train[part]))
        penalty = self.settings.penalty
        if penalty.ramp is not None:
            callbacks.append(PenaltySchedule(Ramp(0.0, penalty.beta, *penalty.ramp)))
        return [*callbacks, recorder]

    def _diverged(self) -> None:
        message = (
            f"the training diverged in epoch {len(self.history) + 1}: lower the learning rate "
            "(training.learning_rate) or beta (penalty.beta)"
        )
        if self.machines.chief:
            write_json(self.folder / RECORD, {"diverged": message, "history": self.history})
        raise DivergedError(message)

    def finish(self, add_figures: Callable[[tf_keras.Model], dict[str, Any]]) -> dict[str, Any]:
        """Write the trained model, in float32 and for one device, and the record."""
        weights = self.model.get_weights()
        model = self._build()
        model.set_weights(weights)
        if self.settings.quantized:
            # So that the model that is kept, attacked and reported is the one that ships.
            round_biases(model)
        record = {
            "weights": weights_digest(model),
            "parameters": int(model.count_params()),
            "trainable_parameters": int(sum(np.prod(w.shape) for w in model.trainable_weights)),
            "seconds": sum(row["seconds"] for row in self.history),
            "history": self.history,
            "data": {"name": self.dataset.name, "source": self.dataset.source},
        }
        if self.machines.chief:
            unfinished = self.folder / f"unfinished-{MODEL}"
            model.save(unfinished)
            os.replace(unfinished, self.folder / MODEL)
            record.update(add_figures(model))
            write_json(self.folder / RECORD, record)
        self.machines.wait_for_all()
        shutil.rmtree(self.manager.directory, ignore_errors=True)
        return record


class _Recorder(tf_keras.callbacks.Callback):
    """Write the history after every epoch, and checkpoints."""

    _supports_tf_logs = True

    def __init__(self, job: _Job, at: int) -> None:
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
        self.job.history.append(row)
        if self.job.machines.chief:
            write_json(self.job.folder / _HISTORY, self.job.history)
        if self.job.log is not None:
            self.job.log.write(epoch, row)
        self._save()
        self.job.tell(
            f"epoch {epoch + 1}, "
            + ", ".join(f"{name} {row[name]:.3f}" for name in row if name.endswith("accuracy"))
        )

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
def _disk_errors(folder: Path) -> Iterator[None]:
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


def _describe(folder: Path, settings: RunSettings, seed: int, machines: Machines) -> None:
    """Write what is run, and where; or check that the folder is this run's."""
    path = folder / "settings.json"
    content = {"seed": seed, "settings": settings.model_dump(mode="json", exclude={"evaluation"})}
    if path.exists():
        remedy = "remove it, and the same command writes it anew"
        found = read_json(path, remedy, {"settings": dict, "seed": int})
        with naming(path, remedy):
            known = RunSettings.model_validate(found["settings"])
        if known.training_key(found["seed"]) != settings.training_key(seed):
            raise ValueError(f"{str(folder)!r} holds another run; give another folder")
    write_json(path, content)
    write_json(folder / "environment.json", environment(machines))


def environment(machines: Machines) -> dict[str, Any]:
    """Return versions, source commit and machine of this process."""
    return {
        "versions": package_versions(),
        "commit": source_commit(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "devices": [device.device_type for device in tf.config.list_logical_devices()],
        "threads": tf.config.threading.get_intra_op_parallelism_threads() or os.cpu_count(),
        "strategy": machines.name,
        "replicas": machines.replicas,
        "workers": machines.workers,
    }


def source_commit() -> str | None:
    """Return the git commit of the sources, with ``+changes`` if they differ; None outside git."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + (
            "+changes" if git("status", "--porcelain", str(here)) else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return None
