"""What quantized training costs on Keras 3: step times as ratios, side by side."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.rows import BATCH, Row, print_rows, training_step

ROUNDS = 10


def resnet20(width: int = 16) -> Any:
    """Return ResNet-20 of Keras 3, as `tfdq.models.resnet20` is of tf_keras."""
    import keras

    layers = keras.layers

    def conv_bn(x: Any, filters: int, size: int, strides: int = 1) -> Any:
        x = layers.Conv2D(filters, size, strides, padding="same", use_bias=False)(x)
        return layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x)

    image = keras.Input((32, 32, 3), name="image")
    x = layers.ReLU()(conv_bn(image, width, 3))
    for stage in range(3):
        for block in range(3):
            strides = 2 if stage and not block else 1
            filters = width * 2**stage
            y = layers.ReLU()(conv_bn(x, filters, 3, strides))
            y = conv_bn(y, filters, 3)
            if strides == 2:
                x = conv_bn(x, filters, 1, strides)
            x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(10, name="logits")(x), name="resnet20")


def keras3_step(model: Any) -> Callable[[], float]:
    """Return a function that runs one compiled training step and returns its seconds.

    Args:
        model: a Keras 3 model, as `rows.training_step` takes one of tf_keras.
    """
    import keras
    import numpy as np

    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=keras.backend.backend() == "jax",
    )
    rng = np.random.default_rng(0)
    images = rng.random((BATCH, 32, 32, 3)).astype(np.float32)
    labels = rng.integers(0, 10, BATCH)

    def run() -> float:
        start = time.perf_counter()
        model.train_on_batch(images, labels)
        return time.perf_counter() - start

    for _ in range(2):
        run()
    return run


def steps() -> list[Row]:
    """Measure the training step of ResNet-20, 32x32x3, batch 128.

    The forms take turns, so that a busy machine slows all of them; each ratio is the median over
    the rounds of the ratio within one round.
    """
    import keras

    from tfdq.keras3 import quantize_model

    backend = keras.backend.backend()
    model = resnet20()
    forms = {
        "float": keras3_step(resnet20()),
        "VQ": keras3_step(quantize_model(model, 0.0, activation_bits=4)),
        "DQ": keras3_step(quantize_model(model, 2e-3, activation_bits=4)),
    }
    if backend == "tensorflow":
        import tfdq
        from tfdq.models import resnet20 as older

        forms["tf_keras DQ"] = training_step(tfdq.quantize_model(older(), 2e-3, activation_bits=4))
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(ROUNDS):
        for name, run in forms.items():
            times[name].append(run())

    def row(name: str, over: str, goal: str) -> Row:
        ratios = [a / b for a, b in zip(times[name], times[over], strict=True)]
        milliseconds = [statistics.median(times[form]) * 1e3 for form in (name, over)]
        detail = "{:.0f} ms over {:.0f} ms, ResNet-20, batch {}".format(*milliseconds, BATCH)
        return Row(f"{backend}: {name} / {over}", statistics.median(ratios), goal, detail)

    rows = [row("VQ", "float", "<= 1.25"), row("DQ", "VQ", "<= 1.02")]
    return [*rows, row("DQ", "tf_keras DQ", "<= 1.00")] if "tf_keras DQ" in forms else rows


def main() -> int:
    """Print the ratios."""
    print_rows(steps())
    return 0


if __name__ == "__main__":
    sys.exit(main())
