"""The devices that a run is spread over."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from tfdq.experiments.settings import RunSettings


@dataclass(frozen=True)
class Machines:
    """The devices that a run is spread over.

    Attributes:
        strategy: of ``tf.distribute``; None for Keras 3, which computes on one device.
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
        return 1 if self.strategy is None else int(self.strategy.num_replicas_in_sync)

    def devices(self) -> list[str]:
        """Return the devices of this process that can evaluate side by side."""
        if self.name not in ("mirrored", "multiworker"):
            return [""]
        return [str(device) for device in self.strategy.extended.worker_devices]

    def on(self, device: str) -> AbstractContextManager[Any]:
        """Return the context in which one of `devices` computes."""
        if not device:
            return nullcontext()
        import tensorflow as tf

        return tf.device(device)

    def wait_for_all(self) -> None:
        """Wait until every process has come to this point."""
        if self.workers > 1:
            import tensorflow as tf

            one = self.strategy.run(lambda: tf.constant(1.0))
            self.strategy.reduce(tf.distribute.ReduceOp.SUM, one, axis=None)


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
