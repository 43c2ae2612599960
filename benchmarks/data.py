"""Whether the input pipeline keeps the training step fed, and what a second worker costs."""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.rows import Row, print_rows

BATCH = 128
BATCHES = 60
STEPS = 3
ROUNDS = 9
WORKER_STEPS = 12


def _images() -> Any:
    """Return random images of CIFAR-10's shape, 50,000 of them: the pipeline sees no difference."""
    from tfdq.data import Dataset

    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (50_000, 32, 32, 3), dtype=np.uint8)
    y = rng.integers(0, 10, len(x))
    return Dataset(x, y, x[:1000], y[:1000], 10, "random images", "drawn")


def _per_image(dataset: Any) -> Any:
    """Return the pipeline as tutorials write it: shuffle, augment image by image, batch."""
    import tensorflow as tf

    def augment(image: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image = tf.cast(image, tf.float32) / 255.0
        image = tf.image.resize_with_crop_or_pad(image, 40, 40)
        image = tf.image.random_crop(image, (32, 32, 3), seed=1)
        return tf.image.random_flip_left_right(image, seed=1), label

    images = tf.data.Dataset.from_tensor_slices((dataset.x_train, dataset.y_train))
    images = images.shuffle(10_000, seed=1).repeat().map(augment, tf.data.AUTOTUNE)
    return images.batch(BATCH, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def _seconds(work: Callable[[], Any], times: int) -> float:
    """Return the seconds of one of `times` calls in a row."""
    start = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - start) / times


def input_pipeline() -> list[Row]:
    """Measure the pipeline with the paper's augmentation against ResNet-20's training step.

    What is compared takes turns; each ratio is the median over the rounds of the ratio within
    one round.
    """
    import tensorflow as tf
    import tf_keras

    from tfdq.data import pipeline
    from tfdq.models import resnet20

    dataset = _images()
    model = resnet20()
    model.compile(
        tf_keras.optimizers.SGD(0.01, momentum=0.9),
        tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    train = model.make_train_function()

    def step(batches: Iterator[Any]) -> None:
        train(batches)["loss"].numpy()

    def drawing(make: Callable[[], Any]) -> float:
        """Time batches of a new iterator: one kept would fill up while others have turns."""
        batches = iter(make())
        for _ in range(BATCHES // 3):
            next(batches)
        return _seconds(lambda: next(batches), BATCHES)

    one_batch = next(iter(pipeline(dataset, BATCH)))
    same: Iterator[Any] = iter(tf.data.Dataset.from_tensors(one_batch).repeat())
    fed: Iterator[Any] = iter(pipeline(dataset, BATCH, "pad_crop_flip"))
    for batches in (same, fed):
        step(batches)
    works: dict[str, Callable[[], float]] = {
        "ours": lambda: drawing(lambda: pipeline(dataset, BATCH, "pad_crop_flip")),
        "usual": lambda: drawing(lambda: _per_image(dataset)),
        "step": lambda: _seconds(lambda: step(same), STEPS),
        "fed": lambda: _seconds(lambda: step(fed), STEPS),
    }
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(ROUNDS):
        for name, work in works.items():
            times[name].append(work())

    def row(title: str, name: str, over: str, goal: str) -> Row:
        ratios = [a / b for a, b in zip(times[name], times[over], strict=True)]
        detail = (
            f"{statistics.median(times[name]) * 1e3:.2f} ms over "
            f"{statistics.median(times[over]) * 1e3:.2f} ms, batch {BATCH}, 32x32x3, pad-crop-flip"
        )
        return Row(title, statistics.median(ratios), goal, detail)

    return [
        row("training step (ResNet-20) / input pipeline", "step", "ours", ">= 3"),
        row("training step fed by the pipeline / from memory", "fed", "step", "<= 1.05"),
        row("image-by-image pipeline / input pipeline", "usual", "ours", ">= 1"),
    ]


def worker(share: int) -> float:
    """Return the seconds of a training step of ResNet-20 with `share` images on this worker.

    Alone, or as one of the workers that TF_CONFIG names; on one thread.
    """
    from tfdq.experiments.process import prepare_process
    from tfdq.experiments.strategy import open_machines

    prepare_process(threads=1)
    machines = open_machines("multiworker" if os.environ.get("TF_CONFIG") else "one_device")
    import tensorflow as tf
    import tf_keras

    import tfdq
    from tfdq.models import resnet20

    with machines.strategy.scope():
        model = tfdq.quantize_model(resnet20(), 2e-3, activation_bits=4, input_range=(0.0, 1.0))
        model.compile(
            tf_keras.optimizers.SGD(0.01, momentum=0.9),
            tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
    images = tf.random.uniform((share, 32, 32, 3), seed=0)
    labels = tf.random.uniform((share,), maxval=10, dtype=tf.int32, seed=0)
    batches = machines.strategy.distribute_datasets_from_function(
        lambda _: tf.data.Dataset.from_tensors((images, labels)).repeat()
    )
    train, iterator = model.make_train_function(), iter(batches)
    times = []
    for _ in range(WORKER_STEPS):
        start = time.perf_counter()
        train(iterator)["loss"].numpy()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def two_workers() -> list[Row]:
    """Measure a step of two worker processes on loopback against one with half of the batch."""
    share = BATCH // 2
    command = [sys.executable, "-m", "benchmarks.data", "--worker", str(share)]
    alone = _printed([subprocess.Popen(command, stdout=subprocess.PIPE, text=True)])
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{s.getsockname()[1]}" for s in (first, second)]
    started = []
    for index in range(2):
        config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        environment = {**os.environ, "TF_CONFIG": json.dumps(config)}
        started.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        )
    together = _printed(started)
    detail = (
        f"{together * 1e3:.0f} ms over {alone * 1e3:.0f} ms, ResNet-20 DQ, {share} images and one "
        "thread a worker, loopback; not measured in turns"
    )
    return [Row("step of two workers / step of one", together / alone, "none", detail)]


def _printed(processes: list[subprocess.Popen[str]]) -> float:
    """Return the largest number that the processes print last."""
    outputs = [process.communicate()[0] for process in processes]
    return max(float(output.splitlines()[-1]) for output in outputs)


def main() -> int:
    """Print the ratios."""
    if sys.argv[1:2] == ["--worker"]:
        print(worker(int(sys.argv[2])))
        return 0
    print_rows(input_pipeline())
    print_rows(two_workers())
    return 0


if __name__ == "__main__":
    sys.exit(main())
