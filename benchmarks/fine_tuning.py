"""Beta on record: what fine-tuning a trained network keeps, and what robustness beta buys.

python -m benchmarks.fine_tuning

Started again it goes on: what stands in the file of results is not done again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any

BETAS = (0.0, 0.001, 0.002, 0.005)
MOMENTA = (0.9, 0.99)
EPOCHS = 5
HELD_OUT = 797
EPS = 8 / 255
ATTACKS: dict[str, dict[str, Any]] = {
    "pgd": {"steps": 20},
    "apgd-ce": {},
    "pgd, margin": {"steps": 50, "loss": "margin"},
}


def digits() -> tuple[Any, Any, Any, Any]:
    """Return 1,000 digits to train on and 797 to test on, float32 in [0, 1], with labels."""
    import numpy as np
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = (bunch.images[..., None] / 16.0).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(images))
    held, rest = order[:HELD_OUT], order[HELD_OUT:]
    return images[rest], bunch.target[rest], images[held], bunch.target[held]


def trained(name: str, momentum: float, data: tuple[Any, Any, Any, Any]) -> Any:
    """Return a float network of `benchmarks.mobile_networks`, trained on digits."""
    import tf_keras

    from benchmarks.mobile_networks import NETWORKS

    x, y, _, _ = data
    tf_keras.utils.set_random_seed(0)
    model = NETWORKS[name](x.shape[1:], 10, momentum)
    rate = tf_keras.optimizers.schedules.CosineDecay(3e-3, 40 * -(-len(x) // 64))
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf_keras.optimizers.Adam(rate), loss)
    model.fit(x, y, epochs=40, batch_size=64, verbose=0)
    return model


class FineTuning:
    """A trained network and its quantized copy for one beta, which is trained once for each seed.

    Args:
        start: the float network.
        data: images and labels to train on and to test on.
        beta: weight of the penalty; all else is the default of ``quantize_model``.
    """

    def __init__(self, start: Any, data: tuple[Any, Any, Any, Any], beta: float) -> None:
        import tf_keras

        import tfdq

        self.data = data
        self.float_accuracy = self._share(start.predict(data[2], verbose=0))
        self.model = tfdq.quantize_model(start, beta)
        self.optimizer = tf_keras.optimizers.Adam(1e-3)
        loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.model.compile(self.optimizer, loss, ["accuracy"])
        self.optimizer.build(self.model.trainable_variables)
        self.weights = self.model.get_weights()
        self.state = [variable.numpy() for variable in self.optimizer.variables]

    def _share(self, logits: Any) -> float:
        import numpy as np

        return round(float(np.mean(logits.argmax(axis=1) == self.data[3])), 4)

    def run(self, seed: int) -> dict[str, Any]:
        """Return the accuracies in training and of the file after each epoch."""
        import tf_keras

        from tflite_export import Interpreter, convert

        tf_keras.utils.set_random_seed(seed)
        self.model.set_weights(self.weights)
        for variable, value in zip(self.optimizer.variables, self.state, strict=True):
            variable.assign(value)
        found: dict[str, Any] = {"float": self.float_accuracy, "training": [], "file": []}
        x, y, x_test, _ = self.data
        for _ in range(EPOCHS):
            history = self.model.fit(x, y, epochs=1, batch_size=32, verbose=0).history
            found["training"].append(round(float(history["accuracy"][0]), 4))
            content = convert(self.model, golden=0, verify_samples=16).content
            found["file"].append(self._share(Interpreter(content).predict(x_test)))
        return found


def robustness(beta: float, seed: int, images: int) -> dict[str, Any]:
    """Train small_cnn at 4 bits on 20,000 images of Fashion-MNIST, and attack it."""
    import numpy as np
    import tf_keras

    import tfdq
    from tfdq.data import load
    from tfdq.experiments.images import scaled
    from tfdq.experiments.settings import TrainingSettings
    from tfdq.experiments.training import train
    from tfdq.models import small_cnn
    from tfdq.robustness import run_attack

    data = load("fashion_mnist").subset(train=20000)
    tf_keras.utils.set_random_seed(seed)
    model = tfdq.quantize_model(
        small_cnn(data.input_shape, data.classes, stem_strides=2),
        beta,
        activation_bits=4,
        input_range=(0.0, 1.0),
    )
    train(model, data, TrainingSettings(epochs=EPOCHS), seed=seed)
    x, y = scaled(data.x_test), data.y_test
    clean = model.predict(x, verbose=0).argmax(axis=1) == y
    x, y = x[:images], y[:images]
    left, found = np.ones(images, bool), {"clean": round(float(np.mean(clean)), 4)}
    for name, options in ATTACKS.items():
        moved = run_attack(name.split(",")[0], model, x, y, EPS, seed=seed, **options).x_adv
        stands = model.predict(moved, verbose=0).argmax(axis=1) == y
        left &= stands
        found[name] = round(float(np.mean(stands)), 4)
    return {**found, "worst": round(float(np.mean(left)), 4)}


def _save(path: Path, content: dict[str, Any]) -> None:
    from tfdq.robustness.result_store import write_atomically

    write_atomically(path, json.dumps(content, indent=1, sort_keys=True) + "\n")


def main() -> int:
    """Do what is not in the file of results yet, and write it down as it comes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("results/fine_tuning.json"))
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--part", choices=("fine_tuning", "robustness"))
    parser.add_argument("--betas", type=float, nargs="+", default=BETAS)
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1))
    parser.add_argument("--networks", nargs="+")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    content: dict[str, Any] = {"fine_tuning": {}, "robustness": {}}
    if options.out.exists():
        content = json.loads(options.out.read_text(encoding="utf-8"))
    if options.part != "robustness":
        from benchmarks.mobile_networks import NETWORKS

        data = digits()
        for momentum, name in itertools.product(MOMENTA, options.networks or NETWORKS):
            start = None
            for beta in options.betas:
                keys = {
                    seed: f"{name}, momentum {momentum}, beta {beta:g}, seed {seed}"
                    for seed in options.seeds
                }
                missing = {s: key for s, key in keys.items() if key not in content["fine_tuning"]}
                if not missing:
                    continue
                start = start or trained(name, momentum, data)
                tuning = FineTuning(start, data, beta)
                for seed, key in missing.items():
                    content["fine_tuning"][key] = tuning.run(seed)
                    _save(options.out, content)
                    print(key, content["fine_tuning"][key], flush=True)
    if options.part != "fine_tuning":
        for beta, seed in itertools.product(options.betas, options.seeds):
            key = f"beta {beta:g}, seed {seed}"
            if key not in content["robustness"]:
                content["robustness"][key] = robustness(beta, seed, options.images)
                _save(options.out, content)
                print(key, content["robustness"][key], flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
