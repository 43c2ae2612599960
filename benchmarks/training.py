"""What defensive quantization costs while training: step times as ratios, side by side."""

from __future__ import annotations

import statistics
import sys

from benchmarks.rows import BATCH, Row, print_rows, training_step

ROUNDS = 12


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
        "float": training_step(resnet20()),
        "VQ": training_step(tfdq.quantize_model(model, 0.0, activation_bits=4)),
        "VQ on [0, 6]": training_step(
            tfdq.quantize_model(model, 0.0, activation_bits=4, activation_range="relu6")
        ),
        "DQ": training_step(tfdq.quantize_model(model, 2e-3, activation_bits=4)),
        "DQ (paper)": training_step(
            tfdq.quantize_model(model, 2e-3, on="kernel", target=1.0, activation_bits=4)
        ),
        "tfmot 8-bit QAT": training_step(tfmot.quantization.keras.quantize_model(model)),
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
        row("VQ on [0, 6]", "tfmot 8-bit QAT", "<= 1.00"),
        row("VQ", "float", "none"),
    ]


def main() -> int:
    """Print the ratios."""
    print_rows(training_steps())
    return 0


if __name__ == "__main__":
    sys.exit(main())
