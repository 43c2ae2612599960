"""The audit on record of a file of another maker: attacks at several eps, audits, and why.

python -m benchmarks.deployed_file FILE.tflite DATA.npz --origin URL --out results/NAME.json

The file is named by its SHA-256 and origin; it is not copied. Beside the attacks on the logits
stands the same PGD through the file's own 8-bit probabilities, and an audit of that. Started again
it goes on: what is in the result file is not measured again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

EPSILONS = (1, 2, 4, 8)


def behind_the_softmax(path: Path, input_range: Any) -> Any:
    """Return the file as it would be attacked through its probabilities: their logarithms."""
    import tensorflow as tf

    from tfdq.robustness.input_ranges import RescaledTarget
    from tfdq.robustness.targets import DifferentiableTarget
    from tflite_export import IntegerTwin

    twin = IntegerTwin(path)
    target = DifferentiableTarget(
        lambda x: tf.math.log(tf.maximum(twin(x), 1e-12)),
        name="logarithms of the 8-bit probabilities",
        logits_known=True,
    )
    return RescaledTarget(target, input_range)


def counted(standing: np.ndarray) -> dict[str, float]:
    """Return a share with its 95 % interval."""
    from tfdq.robustness.statistics import wilson

    share = wilson(int(standing.sum()), len(standing))
    found = {"value": share.value, "low": share.low, "high": share.high}
    return {"standing": int(standing.sum()), "images": len(standing), **found}


def zero_gradients(target: Any, x: np.ndarray, y: np.ndarray) -> float:
    """Return the share of images where the gradient of the cross-entropy is all zero."""
    from tfdq.robustness.attacks.losses import cross_entropy

    _, _, slope = target.loss_gradient(cross_entropy, x, y)
    return float(np.mean(np.abs(slope).reshape(len(x), -1).max(axis=1) == 0))


def measurements(options: argparse.Namespace, x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """Return what is to be measured, each by name as a function without arguments."""
    from tfdq.robustness import as_target, audit, evaluate, run_attack
    from tfdq.robustness.input_ranges import RescaledTarget, find_input_range

    path = options.file
    bare = as_target(path)
    trials = find_input_range(bare, x, y)
    target = RescaledTarget(bare, trials.chosen, trials)
    behind = behind_the_softmax(path, trials.chosen)
    some = slice(0, options.some)

    def pgd(eps: int, source: Any = None) -> Callable[[], Any]:
        return lambda: counted(
            ~run_attack("pgd", target, x, y, eps / 255, steps=20, surrogate=source).success
        )

    def square(eps: int) -> Callable[[], Any]:
        queries = options.queries
        return lambda: counted(
            ~run_attack("square", target, x[some], y[some], eps / 255, queries=queries).success
        )

    def suite(eps: int) -> Callable[[], Any]:
        def measure() -> Any:
            report = evaluate(target, x[some], y[some], epsilons=eps / 255, results=options.pieces)
            return counted(report.survived("model", eps / 255))

        return measure

    def audited(eps: int, model: Any) -> Callable[[], Any]:
        return lambda: audit(
            model, x, y, eps=eps / 255, examples=options.examples, queries=options.queries
        ).to_dict()

    shares = {"logits": target, "probabilities": behind}
    return {
        "input range": lambda: target.input_range,
        "clean": lambda: counted(target.predict(x) == y),
        **{f"PGD-20 at {eps}/255": pgd(eps) for eps in EPSILONS},
        **{f"PGD-20 through the softmax at {eps}/255": pgd(eps, behind) for eps in EPSILONS},
        "zero gradients": lambda: {k: zero_gradients(t, x, y) for k, t in shares.items()},
        **{f"Square at {eps}/255": square(eps) for eps in EPSILONS},
        "audit at 8/255": audited(8, target),
        "audit through the softmax at 8/255": audited(8, behind),
        **{f"standard suite at {eps}/255": suite(eps) for eps in EPSILONS},
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("data", help="a name or path of tfdq.data.load; its test images are used")
    parser.add_argument("--origin", required=True, help="where the file comes from")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pieces", type=Path, help="folder for the finished pieces of the suite")
    parser.add_argument("--images", type=int, help="test images; all by default")
    parser.add_argument("--some", type=int, default=256, help="of them for Square and the suite")
    parser.add_argument("--queries", type=int, default=1000, help="of Square alone and of audits")
    parser.add_argument("--examples", type=int, default=256, help="of the audits")
    options = parser.parse_args(arguments)
    from tfdq.data import load
    from tfdq.experiments.images import scaled
    from tfdq.experiments.run_folder import source_commit
    from tfdq.robustness.result_store import digest, write_atomically
    from tfdq.robustness.versions import package_versions

    data = load(options.data)
    x, y = scaled(data.x_test[: options.images]), data.y_test[: options.images]
    about = {
        "command": "python -m benchmarks.deployed_file "
        f"{options.file.name} {Path(options.data).name} --origin {options.origin} --queries "
        f"{options.queries} --examples {options.examples} --some {options.some}",
        "file": {
            "name": options.file.name,
            "sha256": hashlib.sha256(options.file.read_bytes()).hexdigest(),
            "bytes": os.path.getsize(options.file),
            "origin": options.origin,
        },
        "data": {"name": data.name, "images": len(x), "digest": digest(data.x_test, data.y_test)},
    }
    record: dict[str, Any] = {**about, "measured": {}}
    if options.out.exists():
        kept = json.loads(options.out.read_text(encoding="utf-8"))
        if {name: kept.get(name) for name in about} == about:
            record = kept
    for name, measure in measurements(options, x, y).items():
        if name not in record["measured"]:
            record["measured"][name] = measure()
            record.update(versions=package_versions(), commit=source_commit())
            write_atomically(options.out, json.dumps(record, indent=1) + "\n")
            print(f"{name}: done", file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
