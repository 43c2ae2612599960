"""What defensive quantization costs while training: step times as ratios, side by side."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

BATCH = 128
ROUNDS = 12


class Row(NamedTuple):
    """One measured ratio."""

    name: str
    ratio: float
    goal: str
    detail: str


def _step(model: Any) -> Callable[[], float]:
    """Return a function that runs one compiled training step and returns its seconds."""
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


def training_steps() -> list[Row]:
    """Measure the training step of ResNet-20, 32x32x3, batch 128, in four forms.

    The forms take turns, so that a busy machine slows all of them; each ratio is the median over
    the rounds of the ratio within one round.
    """
    import tensorflow_model_optimization as tfmot

    import tfdq
    from tfdq.models import resnet20

    model = resnet20()
    steps = {
        "float": _step(resnet20()),
        "VQ": _step(tfdq.quantize_model(model, 0.0, activation_bits=4)),
        "DQ": _step(tfdq.quantize_model(model, 2e-3, activation_bits=4)),
        "DQ (paper)": _step(tfdq.quantize_model(model, 2e-3, on="kernel", activation_bits=4)),
        "tfmot 8-bit QAT": _step(tfmot.quantization.keras.quantize_model(model)),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, run in steps.items():
            times[name].append(run())

    def row(name: str, over: str, goal: str) -> Row:
        ratios = [a / b for a, b in zip(times[name], times[over], strict=True)]
        detail = (
            f"{statistics.median(times[name]) * 1e3:.0f} ms over "
            f"{statistics.median(times[over]) * 1e3:.0f} ms, ResNet-20, batch {BATCH}"
        )
        return Row(f"training step, {name} / {over}", statistics.median(ratios), goal, detail)

    return [
        row("DQ", "VQ", "<= 1.02"),
        row("DQ (paper)", "VQ", "<= 1.02"),
        row("VQ", "tfmot 8-bit QAT", "<= 1.00"),
        row("VQ", "float", "none"),
    ]


def main() -> int:
    """Print the ratios."""
    for row in training_steps():
        print(f"{row.name:45} {row.ratio:6.3f}  goal {row.goal:8} {row.detail}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
