"""Where to put which Lipschitz penalty: one factor at a time around the default, and two together.

    python -m benchmarks.lipschitz_ablation --out results/lipschitz_ablation.json

Every finished run is written at once; started again, it goes on where it was cut off.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

EPS = 8 / 255


@dataclass(frozen=True)
class Variant:
    """One way to train; the defaults are the library's.

    Attributes:
        on: where the penalty sits, or ``"none"``.
        penalty: which one, a name of ``tfdq.lipschitz.get_regularizer``.
        target: singular value that it aims at.
        beta: its weight.
        bits: of the activations; 0: a float network.
    """

    on: str = "deployed"
    penalty: str = "orthogonal"
    target: float | str = 1.0
    beta: float = 2e-3
    bits: int = 4


def core() -> Iterator[tuple[str, Variant]]:
    """Yield what the default is chosen among, each with the factor that it belongs to."""
    default = Variant()
    for on in ("none", "kernel", "folded", "deployed"):
        yield "placement", replace(default, on=on)
    yield "target", replace(default, target="1/k")
    for beta in (5e-3, 2e-2):
        yield "target x beta", replace(default, target="1/k", beta=beta)


def variants() -> Iterator[tuple[str, Variant]]:
    """Yield the other variants; some belong to several factors, and some to the core."""
    default = Variant()
    for penalty in ("orthogonal", "srip", "spectral", "conv_orthogonal"):
        yield "penalty", replace(default, penalty=penalty)
    for beta in (5e-4, 5e-3, 2e-2):
        yield "beta", replace(default, beta=beta)
    for on in ("kernel", "folded"):
        yield "target x placement", replace(default, on=on, target="1/k")
    for bits, on in itertools.product((2, 8), ("none", "kernel", "folded", "deployed")):
        yield "bits x placement", replace(default, bits=bits, on=on)
    for bits in (2, 8):
        yield "bits x target", replace(default, bits=bits, target="1/k")
    for on in ("none", "kernel"):
        yield "float", replace(default, bits=0, on=on)
    for beta in (2e-3, 2e-2):
        yield (
            "penalty x target",
            replace(default, penalty="conv_orthogonal", target="1/k", beta=beta),
        )
    # The two that act on one singular value have a gradient 1 / (number of them) as large.
    for penalty in ("srip", "spectral"):
        yield "penalty x beta", replace(default, penalty=penalty, beta=5e-2)


def build(variant: Variant, input_shape: tuple[int, int, int], classes: int) -> Any:
    """Return the untrained network of a variant."""
    import tf_keras

    import tfdq
    from tfdq.lipschitz import get_regularizer
    from tfdq.models import small_cnn

    model = small_cnn(input_shape, classes)
    regularizer: Any = None
    if variant.on != "none":
        place: Any = variant.on
        regularizer = get_regularizer(variant.penalty, variant.beta, place, target=variant.target)
    if variant.bits:
        return tfdq.quantize_model(
            model,
            0.0,
            regularizer="orthogonal" if regularizer is None else regularizer,
            activation_bits=variant.bits,
            input_range=(0.0, 1.0),
        )

    def with_penalty(layer: Any) -> Any:
        config = layer.get_config()
        if regularizer is not None and "kernel_regularizer" in config:
            config["kernel_regularizer"] = type(regularizer).from_config(regularizer.get_config())
        return type(layer).from_config(config)

    return tf_keras.models.clone_model(model, clone_function=with_penalty)


def run(variant: Variant, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train and measure one variant; return its figures."""
    import tf_keras

    from tfdq.data import load
    from tfdq.experiments.training import TrainingSettings, scaled, train
    from tfdq.lipschitz import report
    from tfdq.robustness import audit, evaluate

    data = load(options.data).subset(options.train, options.test, seed=0)
    tf_keras.utils.set_random_seed(seed)
    model = build(variant, data.input_shape, data.classes)
    train(model, data, TrainingSettings(epochs=options.epochs, seed=seed))
    x, y = scaled(data.x_test), data.y_test
    compared = evaluate(model, x, y, attacks=["fgsm", "pgd"], epsilons=EPS, seed=seed)
    count = min(options.suite, len(x))
    suite = evaluate(model, x[:count], y[:count], epsilons=EPS, seed=seed)
    count = min(options.audit, len(x))
    checked = audit(model, x[:count], y[:count], eps=EPS, seed=seed)
    norms = report(model, certify=False)
    return {
        "clean": asdict(compared.clean("model")),
        "fgsm": asdict(compared.robust("model", EPS, "fgsm")),
        "pgd": asdict(compared.robust("model", EPS, "pgd")),
        "worst": asdict(suite.robust("model", EPS)),
        "audit_passed": checked.passed,
        "audit_failed": [check.name for check in checked.checks if check.status == "failed"],
        "network_norm": norms.estimate,
    }


def main(arguments: list[str] | None = None) -> int:
    """Run what is not yet in the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("results/lipschitz_ablation.json"))
    parser.add_argument("--data", default="fashion_mnist", help="a name or path of tfdq.data.load")
    parser.add_argument("--train", type=int, default=20_000, help="training images")
    parser.add_argument("--test", type=int, default=1_000, help="test images")
    parser.add_argument("--suite", type=int, default=200, help="test images of the full suite")
    parser.add_argument("--audit", type=int, default=200, help="test images of the audit")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--factor", help="only this factor")
    options = parser.parse_args(arguments)
    import tf_keras

    from tfdq.robustness.result_store import write_atomically

    settings = {
        key: value for key, value in vars(options).items() if key not in ("out", "seeds", "factor")
    }
    found: dict[str, Any] = {"settings": settings, "eps": EPS, "runs": []}
    if options.out.exists():
        found = json.loads(options.out.read_text(encoding="utf-8"))
        if found["settings"] != settings:
            parser.error(f"{options.out} holds runs with other settings: {found['settings']}")
    done = {(json.dumps(row["variant"]), row["seed"]) for row in found["runs"]}
    # Seeds outside: cut off, the study holds every variant as often as every other.
    seeds = range(options.seeds)
    for seed, (factor, variant) in itertools.chain(
        itertools.product(seeds, core()), itertools.product(seeds, variants())
    ):
        key = (json.dumps(asdict(variant)), seed)
        if options.factor not in (None, factor) or key in done:
            continue
        done.add(key)
        print(f"{factor}: {variant}, seed {seed}", flush=True)
        figures = run(variant, seed, options)
        row = {"factor": factor, "variant": asdict(variant), "seed": seed, **figures}
        found["runs"].append(row)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(options.out, json.dumps(found, indent=1) + "\n")
        tf_keras.backend.clear_session()
    return 0


if __name__ == "__main__":
    sys.exit(main())
