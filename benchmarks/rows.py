"""What a benchmark returns, how it is printed, and the training step that several measure."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

BATCH = 128


class Row(NamedTuple):
    """One measured figure: a ratio where not said otherwise."""

    name: str
    value: float
    goal: str
    detail: str


def print_rows(rows: Iterable[Row]) -> None:
    """Print rows as they come."""
    for row in rows:
        print(f"{row.name:52} {row.value:9.3f}  goal {row.goal:12} {row.detail}", flush=True)


def training_step(model: Any) -> Callable[[], float]:
    """Return a function that runs one compiled training step and returns its seconds.

    Args:
        model: ends in 10 logits, takes images ``(32, 32, 3)``; 128 random ones are a batch.
    """
    import tensorflow as tf
    import tf_keras

    model.compile(
        tf_keras.optimizers.SGD(0.01, momentum=0.9),
        tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    random = tf.random.Generator.from_seed(0)
    images = random.uniform((BATCH, 32, 32, 3))
    labels = random.uniform((BATCH,), maxval=10, dtype=tf.int32)
    train = model.make_train_function()
    batches: Iterator[Any] = iter(tf.data.Dataset.from_tensors((images, labels)).repeat())

    def run() -> float:
        start = time.perf_counter()
        train(batches)["loss"].numpy()
        return time.perf_counter() - start

    for _ in range(2):
        run()
    return run
