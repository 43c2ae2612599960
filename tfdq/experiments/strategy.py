"""Where a run is computed: one device, several, several machines, a TPU; all by tf.distribute."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from tfdq.data import Dataset, pipeline
from tfdq.experiments.settings import RunSettings, TrainingSettings

STRATEGIES = ("auto", "one_device", "mirrored", "multiworker", "tpu")


@dataclass(frozen=True)
class Machines:
    """The devices that a run is spread over.

    Attributes:
        strategy: of ``tf.distribute``.
        name: one of ``STRATEGIES`` but ``"auto"``.
        worker: number of this process, from 0; 0 is the chief, which writes the results.
        workers: number of processes.
    """

    strategy: Any
    name: str
    worker: int = 0
    workers: int = 1

    @property
    def chief(self) -> bool:
        """Whether this process writes the results."""
        return self.worker == 0

    @property
    def replicas(self) -> int:
        """Number of devices that each take a part of every batch."""
        return int(self.strategy.num_replicas_in_sync)

    def devices(self) -> list[str]:
        """Return the devices of this process that can evaluate side by side."""
        if self.name not in ("mirrored", "multiworker"):
            return [""]
        return [str(device) for device in self.strategy.extended.worker_devices]

    def wait_for_all(self) -> None:
        """Wait until every process has come to this point."""
        if self.workers > 1:
            one = self.strategy.run(lambda: tf.constant(1.0))
            self.strategy.reduce(tf.distribute.ReduceOp.SUM, one, axis=None)


def open_machines(name: str = "auto") -> Machines:
    """Return the devices to compute on; call it before anything else of TensorFlow is used.

    Args:
        name: ``"one_device"``; ``"mirrored"``: all GPUs of this machine (or all logical CPUs, where
            there are no GPUs); ``"multiworker"``: the machines named in the environment variable
            ``TF_CONFIG``; ``"tpu"``; ``"auto"``: a TPU if there is one, else what ``TF_CONFIG``
            says, else all GPUs where there are several, else one device.

    Raises:
        ValueError: there is no such strategy, or what it needs is not there.
    """
    if name not in STRATEGIES:
        raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}, got {name!r}")
    if name == "auto":
        name = _detected()
    if name == "one_device":
        return Machines(tf.distribute.get_strategy(), name)
    if name == "mirrored":
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return Machines(tf.distribute.MirroredStrategy([d.name for d in devices]), name)
    if name == "tpu":
        return Machines(_tpu_strategy(), name)
    cluster = _cluster()
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    workers = cluster["cluster"].get("chief", []) + cluster["cluster"].get("worker", [])
    task = cluster.get("task", {"type": "worker", "index": 0})
    chiefs = len(cluster["cluster"].get("chief", []))
    index = int(task["index"]) + (chiefs if task["type"] == "worker" else 0)
    return Machines(strategy, name, index, len(workers))


def _detected() -> str:
    if os.environ.get("TPU_NAME") or tf.config.list_physical_devices("TPU"):
        return "tpu"
    if os.environ.get("TF_CONFIG"):
        return "multiworker"
    return "mirrored" if len(tf.config.list_physical_devices("GPU")) > 1 else "one_device"


def _cluster() -> dict[str, Any]:
    text = os.environ.get("TF_CONFIG", "")
    try:
        found = json.loads(text)
        if found["cluster"].get("worker") or found["cluster"].get("chief"):
            return found
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise ValueError(
        'strategy multiworker needs TF_CONFIG=\'{"cluster": {"worker": ["host:port", ...]}, '
        f'"task": {{"type": "worker", "index": 0}}}}\' in the environment, got {text!r}'
    )


def _tpu_strategy() -> Any:
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(os.environ.get("TPU_NAME", ""))
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, tf.errors.OpError) as error:
        raise ValueError(
            'strategy tpu found no TPU: run on a TPU machine with TPU_NAME set ("local" on the '
            f"machine itself): {error}"
        ) from error
    return tf.distribute.TPUStrategy(resolver)


def check_batch(settings: RunSettings, machines: Machines) -> None:
    """Check that the global batch can be shared out.

    Raises:
        ValueError: it can't; says what to set.
    """
    batch = settings.training.batch_size
    if batch % machines.replicas:
        raise ValueError(
            f"batch_size {batch} can't be shared by {machines.replicas} devices: set "
            f"training.batch_size to a multiple of {machines.replicas}"
        )


def scaled_to(settings: RunSettings, replicas: int) -> RunSettings:
    """Return settings whose batch and learning rate are multiplied by the number of devices.

    Source: Goyal et al., *Accurate, Large Minibatch SGD*, 2017 (linear scaling rule).
    """
    training = settings.training
    changed = training.model_copy(
        update={
            "batch_size": training.batch_size * replicas,
            "learning_rate": training.learning_rate * replicas,
        }
    )
    return settings.model_copy(update={"training": changed})


def training_batches(
    training: TrainingSettings, dataset: Dataset, seed: int, start_step: int, machines: Machines
) -> Any:
    """Return the batches from a step on, each device's part of every global batch.

    Args:
        training: batch size and augmentation.
        dataset: the images.
        seed: of order and augmentation.
        start_step: number of the first batch.
        machines: the devices.
    """
    size, augment = training.batch_size, training.augment
    if machines.replicas == 1:
        return pipeline(dataset, size, augment, seed, start_step=start_step)

    def share(context: Any) -> tf.data.Dataset:
        part = (context.input_pipeline_id, context.num_input_pipelines)
        batches = pipeline(dataset, size, augment, seed, start_step=start_step, shard=part)
        return batches.rebatch(size // machines.replicas, drop_remainder=True)

    return machines.strategy.distribute_datasets_from_function(share)
