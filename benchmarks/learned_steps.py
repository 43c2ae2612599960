"""Learned steps on record: accuracy of few-bit networks on observed and on learned grids.

python -m benchmarks.learned_steps

Started again it goes on: what stands in the file of results is not done again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import Any

GRIDS: dict[str, dict[str, str]] = {
    "observed": {},
    "learned activations": {"activation_range": "learned"},
    "learned kernels": {"kernel_range": "learned"},
    "both learned": {"activation_range": "learned", "kernel_range": "learned"},
}
BETAS = (0.0, 2e-3)
BITS = (4, 2)
EPOCHS = 4
TRAIN, BATCH = 10_000, 128


def network() -> Any:
    """Return a small convolutional network for 28 x 28 grey images."""
    import keras

    layers = keras.layers
    image = x = keras.Input((28, 28, 1), name="image")
    for filters, strides in ((16, 2), (32, 1), (32, 2)):
        x = layers.Conv2D(filters, 3, strides, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(10, name="logits")(x), name="small")


def fit(model: Any, data: Any) -> None:
    """Train a model for a few epochs, with a learning rate that falls to 0."""
    import keras

    steps = EPOCHS * -(-len(data[0]) // BATCH)
    rate = keras.optimizers.schedules.CosineDecay(2e-3, steps)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    model.fit(data[0], data[1], batch_size=BATCH, epochs=EPOCHS, verbose=0)


def main() -> int:
    """Do what is not in the file of results yet, and write it down as it comes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("results/learned_steps.json"))
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1))
    options = parser.parse_args()
    import keras
    import numpy as np

    import tfdq
    from tfdq.data import load
    from tfdq.robustness.result_store import write_atomically

    fashion = load("fashion_mnist").subset(train=TRAIN)
    train = (fashion.x_train.astype(np.float32) / 255, fashion.y_train)
    test = (fashion.x_test.astype(np.float32) / 255, fashion.y_test)
    content: dict[str, dict[str, float]] = {}
    if options.out.exists():
        content = json.loads(options.out.read_text(encoding="utf-8"))
    for seed in options.seeds:
        start = None
        for bits, beta, grid in itertools.product(BITS, BETAS, GRIDS):
            key = f"{bits} bits, beta {beta:g}, seed {seed}"
            if grid in content.setdefault(key, {}):
                continue
            keras.utils.set_random_seed(seed)
            if start is None:
                start = network()
                fit(start, train)
                accuracy = start.evaluate(*test, batch_size=500, verbose=0)[1]
                content.setdefault(f"float, seed {seed}", {})["float"] = round(accuracy, 4)
            model = tfdq.quantize_model(
                start,
                beta,
                weight_bits=bits,
                activation_bits=bits,
                input_range=(0.0, 1.0),
                **GRIDS[grid],
            )
            fit(model, train)
            # `evaluate` computes the integers of the exported file.
            content[key][grid] = round(model.evaluate(*test, batch_size=500, verbose=0)[1], 4)
            print(key, grid, content[key][grid], flush=True)
            write_atomically(options.out, json.dumps(content, indent=1, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
