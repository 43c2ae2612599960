"""Choose the demo's beta on images that it does not test on: a part of its training digits.

python -m benchmarks.demo_beta
"""

from __future__ import annotations

import dataclasses
import sys

SEEDS = (10, 11)
BETAS = (0.0, 0.003, 0.01, 0.03, 0.1)
HELD_OUT = 300
EPS = 32 / 255


def main() -> int:
    """Print clean and robust accuracy on the held-out digits for every beta and seed."""
    import numpy as np
    import tf_keras

    import tfdq
    from tfdq.data import load
    from tfdq.experiments.images import scaled
    from tfdq.experiments.settings import TrainingSettings
    from tfdq.experiments.training import train
    from tfdq.models import small_cnn
    from tfdq.robustness import evaluate

    digits = load("digits")
    order = np.random.default_rng(0).permutation(len(digits.y_train))
    held, rest = order[:HELD_OUT], order[HELD_OUT:]
    part = dataclasses.replace(
        digits,
        x_train=digits.x_train[rest],
        y_train=digits.y_train[rest],
        x_test=digits.x_train[held],
        y_test=digits.y_train[held],
    )
    x, y = scaled(part.x_test), part.y_test
    print(f"{HELD_OUT} held-out training digits, 4 bits, eps {EPS * 255:.0f}/255, in %")
    for seed in SEEDS:
        settings = TrainingSettings()
        tf_keras.utils.set_random_seed(seed)
        start = small_cnn(part.input_shape, part.classes)
        train(start, part, settings, seed=seed)
        for beta in BETAS:
            model = tfdq.quantize_model(start, beta, activation_bits=4, input_range=(0.0, 1.0))
            train(model, part, settings, seed=seed)
            report = evaluate(model, x, y, attacks=["pgd"], epsilons=EPS, seed=seed, progress=False)
            clean, robust = report.clean("model"), report.robust("model", EPS, "pgd")
            print(f"seed {seed}, beta {beta}: clean {clean}, PGD {robust}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
