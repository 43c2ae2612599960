"""Certified accuracy on record: intervals on the integers after IntervalTraining, and smoothing.

python -m benchmarks.certified_accuracy --train 30000 --epochs 10 --seeds 3

Started again with the same settings it goes on: a seed that is finished is not done again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any


def network(input_shape: tuple[int, int, int], classes: int) -> Any:
    """Return the small convolutional network that interval bounds are usually shown on."""
    import tf_keras

    layers = tf_keras.layers
    inputs = tf_keras.Input(input_shape)
    x = layers.Conv2D(16, 4, strides=2, padding="same", activation="relu")(inputs)
    x = layers.Conv2D(32, 4, strides=2, padding="same", activation="relu")(x)
    x = layers.Dense(100, activation="relu")(layers.Flatten()(x))
    return tf_keras.Model(inputs, layers.Dense(classes)(x))


def trained_for_intervals(options: argparse.Namespace, data: Any, seed: int) -> Any:
    """Train with interval bounds, and return the exported integers.

    Args:
        options: `bits`, `epochs` and `eps`.
        data: the data set.
        seed: of weights and order.
    """
    import tf_keras

    import tfdq
    from tfdq.certificates import IntervalTraining
    from tfdq.experiments.settings import TrainingSettings
    from tfdq.experiments.training import train
    from tfdq.penalties import Ramp
    from tflite_export import convert

    tf_keras.utils.set_random_seed(seed)
    model = tfdq.quantize_model(
        network(data.input_shape, data.classes),
        0.0,
        activation_bits=options.bits,
        activation_range="relu6",
        input_range=(0.0, 1.0),
    )
    begin, end = options.epochs * 0.1, options.epochs * 0.6
    training = IntervalTraining(
        model, Ramp(0.0, options.eps, begin, end), Ramp(1.0, 0.5, begin, end)
    )
    settings = TrainingSettings(epochs=options.epochs, learning_rate=1e-3)
    train(model, data, settings, trained=training, seed=seed)
    return convert(model)


def intervals(options: argparse.Namespace, data: Any, seed: int) -> dict[str, float]:
    """Train with interval bounds, and certify the exported integers in L_inf."""
    from tfdq.certificates import certify
    from tfdq.experiments.images import scaled

    exported = trained_for_intervals(options, data, seed)
    x, y = scaled(data.x_test[: options.images]), data.y_test[: options.images]
    found = certify(exported, x, y, norm="linf", max_steps=4)
    return {
        "clean": found.clean_accuracy,
        **{f"{n}/255": found.certified_accuracy(n / 255) for n in (1, 2, 4)},
    }


def smoothing(options: argparse.Namespace, data: Any, seed: int) -> dict[str, float]:
    """Train on noise, and certify the smoothed ``.tflite`` in L2."""
    import numpy as np
    import tf_keras

    import tfdq
    from tfdq.certificates import SmoothingSettings, certify, gaussian_augmentation
    from tfdq.experiments.images import scaled
    from tfdq.models import small_cnn
    from tflite_export import convert

    tf_keras.utils.set_random_seed(seed)
    sigma = options.sigma
    # Wide enough for images in [0, 1] with noise on them, which smoothing does not clip.
    model = tfdq.quantize_model(
        small_cnn(data.input_shape, data.classes),
        target=1.0,
        activation_bits=options.bits,
        activation_range="relu6",
        input_range=(-3 * sigma, 1 + 3 * sigma),
    )
    model.compile(
        tf_keras.optimizers.Adam(1e-3),
        tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    import tensorflow as tf

    images, labels = scaled(data.x_train), data.y_train
    batches = tf.data.Dataset.from_tensor_slices((images, labels))
    batches = batches.shuffle(len(images), seed).batch(64)
    noisy = gaussian_augmentation(batches, sigma, seed)
    model.fit(noisy, epochs=max(1, options.epochs // 2), verbose=0)
    settings = SmoothingSettings(sigma, 100, options.samples, seed=seed)
    count = min(options.smoothed, len(data.y_test))
    x, y = scaled(data.x_test[:count]), data.y_test[:count]
    record = options.out.with_suffix(f".smoothing-{seed}.jsonl")
    found = certify(convert(model), x, y, method="smoothing", smoothing=settings, resume=record)
    return {
        "clean": found.clean_accuracy,
        "abstained": float(np.mean(found.abstained)),
        **{f"{r:g}": found.certified_accuracy(r) for r in (0.1, 0.25, 0.5, 0.75)},
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("results/certified_accuracy.json"))
    parser.add_argument("--data", default="fashion_mnist", help="a name or path of tfdq.data.load")
    parser.add_argument("--train", type=int, help="training images; all by default")
    parser.add_argument("--images", type=int, default=2_000, help="test images for intervals")
    parser.add_argument("--smoothed", type=int, default=500, help="test images for smoothing")
    parser.add_argument("--samples", type=int, default=10_000, help="noisy copies of each")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--bits", type=int, default=4, help="of the activations")
    parser.add_argument("--eps", type=float, default=2.5 / 255, help="last eps of the training")
    parser.add_argument("--sigma", type=float, default=0.25)
    parser.add_argument("--seeds", type=int, default=3, help="trainings, from seed 0")
    parser.add_argument("--only", choices=("intervals", "smoothing"))
    options = parser.parse_args(arguments)
    from tfdq.data import load
    from tfdq.experiments.run_folder import source_commit
    from tfdq.experiments.summary import average
    from tfdq.robustness.result_store import write_atomically
    from tfdq.robustness.versions import package_versions

    data = load(options.data).subset(options.train, None, seed=0)
    settings = {k: v for k, v in vars(options).items() if k not in ("out", "seeds", "only")}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {}
    if options.out.exists():
        record = json.loads(options.out.read_text(encoding="utf-8"))
    for name, measure in (("intervals, linf", intervals), ("smoothing, l2", smoothing)):
        if options.only not in (None, name.partition(",")[0]):
            continue
        part = record.get(name, {})
        # What was measured with other settings makes room.
        runs = part.get("runs", {}) if part.get("settings") == settings else {}
        for seed in range(options.seeds):
            if str(seed) in runs:
                continue
            runs[str(seed)] = {
                "accuracy": measure(options, data, seed),
                "versions": package_versions(),
                "commit": source_commit(),
            }
            summary = {
                metric: average({int(s): run["accuracy"][metric] for s, run in runs.items()})
                for metric in runs[str(seed)]["accuracy"]
            }
            record[name] = {"settings": settings, "runs": runs, "summary": summary}
            write_atomically(options.out, json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
