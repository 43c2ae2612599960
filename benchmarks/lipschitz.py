"""What Lipschitz control costs: the penalties by the step, norms and certificates by the second."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.rows import BATCH, Row, print_rows, training_step

ROUNDS = 12


def penalty_steps(rounds: int = ROUNDS) -> list[Row]:
    """Measure the training step of a quantized ResNet-20 with each penalty over that without.

    The forms take turns, so that a busy machine slows all of them; each ratio is the median over
    the rounds of the ratio within one round.
    """
    import tfdq
    from tfdq.models import resnet20
    from tfdq.penalties import get_regularizer

    goals = {"orthogonal": "<= 1.02", "conv_orthogonal": "<= 1.10", "spectral": "", "srip": ""}
    model = resnet20()
    steps = {"none": training_step(tfdq.quantize_model(model, 0.0, activation_bits=4))}
    for name in goals:
        regularizer = get_regularizer(name, 2e-3, "deployed")
        steps[name] = training_step(
            tfdq.quantize_model(model, regularizer=regularizer, activation_bits=4)
        )
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, run in steps.items():
            times[name].append(run())
    rows = []
    for name, goal in goals.items():
        ratio = statistics.median(a / b for a, b in zip(times[name], times["none"], strict=True))
        detail = (
            f"{statistics.median(times[name]) * 1e3:.0f} ms over "
            f"{statistics.median(times['none']) * 1e3:.0f} ms, ResNet-20, batch {BATCH}"
        )
        rows.append(Row(f"step with the {name} penalty / without", ratio, goal, detail))
    return rows


def fused_penalties(rounds: int = ROUNDS) -> list[Row]:
    """Measure one pass over all kernels of a shape, over one pass for each kernel.

    On a quantized ResNet-20, in the training step and for the penalties with their gradients by
    themselves: a Functional model of the same layers evaluates each penalty alone.
    """
    import tf_keras

    import tfdq
    from tfdq.models import resnet20
    from tfdq.penalties import get_regularizer

    rows = []
    for name in ("orthogonal", "conv_orthogonal"):
        regularizer = get_regularizer(name, 2e-3, "deployed")
        fused, other = (
            tfdq.quantize_model(resnet20(), regularizer=regularizer, activation_bits=4)
            for _ in range(2)
        )
        separate = tf_keras.Model(other.inputs, other.outputs)
        steps = _medians([training_step(fused), training_step(separate)], rounds)
        alone = _medians([_penalty_gradients(fused), _penalty_gradients(separate)], 5 * rounds)
        for what, (ratio, first, second) in (("in a step", steps), ("alone", alone)):
            detail = f"{first * 1e3:.1f} ms over {second * 1e3:.1f} ms, ResNet-20"
            rows.append(Row(f"{name} penalties fused / separate, {what}", ratio, "", detail))
    return rows


def _penalty_gradients(model: Any) -> Callable[[], float]:
    """Return a function that takes the penalties and their gradients; it returns its seconds."""
    import tensorflow as tf

    @tf.function
    def gradients() -> Any:
        with tf.GradientTape() as tape:
            total = tf.add_n(model.losses)
        return total, tape.gradient(total, model.trainable_variables)

    def run() -> float:
        start = time.perf_counter()
        gradients()[0].numpy()
        return time.perf_counter() - start

    run()
    return run


def _medians(runs: list[Callable[[], float]], rounds: int) -> tuple[float, float, float]:
    """Let two functions take turns; return the medians of the ratio and of the seconds of each."""
    times = [[run() for run in runs] for _ in range(rounds)]
    ratio = statistics.median(first / second for first, second in times)
    first, second = (statistics.median(column) for column in zip(*times, strict=True))
    return ratio, first, second


def norm_times() -> list[Row]:
    """Measure how long norms take, and how far the proven bound is above the measured norm."""
    import numpy as np

    from tfdq.certificates import lipschitz_report
    from tfdq.certificates.linear_maps import ConvolutionMap
    from tfdq.certificates.norms import measure
    from tfdq.models import resnet20

    rows = []
    rng = np.random.default_rng(0)
    for size, channels in ((32, 16), (16, 32), (8, 64), (32, 160), (8, 640), (4, 512)):
        kernel = rng.standard_normal((3, 3, channels, channels)) / np.sqrt(9 * channels)
        layer = ConvolutionMap(kernel, (size, size, channels), padding=((1, 1), (1, 1)))
        start = time.perf_counter()
        found = measure(layer)
        seconds = time.perf_counter() - start
        gap = found.upper / found.sigma - 1
        detail = f"norm {found.sigma:.4f}, bound {gap:.2%} above ({found.method})"
        rows.append(
            Row(f"norm of a 3x3 convolution, {size}x{size}x{channels}", seconds, "s", detail)
        )
    start = time.perf_counter()
    found_report = lipschitz_report(resnet20())
    seconds = time.perf_counter() - start
    detail = f"{len(found_report.rows)} layers"
    return [*rows, Row("report of ResNet-20, proven", seconds, "s", detail)]


def certificate_times() -> list[Row]:
    """Measure the speed of interval bounds and of smoothing on a small quantized network."""
    import numpy as np

    import tfdq
    from tfdq.certificates import SmoothingSettings, certify
    from tfdq.models import small_cnn
    from tflite_export.files.write import write
    from tflite_export.twin.integer_twin import graph_of

    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, (64, 28, 28, 1)).astype(np.float32)
    y = np.zeros(64, int)
    model = tfdq.quantize_model(
        small_cnn((28, 28, 1), 10), 0.0, activation_bits=4, input_range=(0.0, 1.0)
    )
    tfdq.calibrate(model, x)
    graph = graph_of(model)
    start = time.perf_counter()
    certify(graph, x, y, norm="linf", max_steps=2)
    intervals = len(x) / (time.perf_counter() - start)
    settings = SmoothingSettings(0.25, 100, 1000)
    start = time.perf_counter()
    certify(write(graph), x[:4], y[:4], method="smoothing", smoothing=settings)
    votes = 4 * 1100 / (time.perf_counter() - start)
    return [
        Row("interval certificates, up to 2 steps", intervals, "1/s", "small CNN, 28x28x1"),
        Row("smoothing votes on the .tflite", votes, "1/s", "small CNN, 28x28x1"),
    ]


def main() -> int:
    """Print all figures."""
    print_rows((*penalty_steps(), *fused_penalties(), *norm_times(), *certificate_times()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
