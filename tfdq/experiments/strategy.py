"""Where tf_keras computes a run: one device, several, several machines, a TPU; by tf.distribute."""

from __future__ import annotations

import json
import os
from functools import partial
from typing import Any

import tensorflow as tf

from tfdq.data import Dataset, pipeline
from tfdq.experiments.machines import Machines
from tfdq.experiments.settings import TrainingSettings

STRATEGIES = ("auto", "one_device", "mirrored", "multiworker", "tpu")


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
    size = training.batch_size
    part_of = partial(
        pipeline,
        dataset,
        size,
        training.augment,
        seed,
        start_step=start_step,
        cutout=training.cutout,
    )
    if machines.replicas == 1:
        return part_of()

    def share(context: Any) -> tf.data.Dataset:
        part = (context.input_pipeline_id, context.num_input_pipelines)
        batches = part_of(shard=part)
        return batches.rebatch(size // machines.replicas, drop_remainder=True)

    return machines.strategy.distribute_datasets_from_function(share)
