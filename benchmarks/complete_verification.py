"""Certified accuracy on record, completely: what the search adds to intervals, and its time.

python -m benchmarks.complete_verification --train 30000 --epochs 10 --images 200

Started again with the same settings it goes on: files that are trained and images that are decided
are kept in the folder of ``--work``.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.certified_accuracy import trained_for_intervals


def measure(options: argparse.Namespace, data: Any, seed: int) -> dict[str, Any]:
    """Train one file, or take the one that is there, and certify it in both ways."""
    import numpy as np

    from tfdq.certificates import CompleteCertificate, certify
    from tfdq.experiments.images import scaled

    name = f"{options.data}-{options.train}-{options.epochs}-{options.bits}-{options.eps:g}-{seed}"
    file = options.work / f"{name.replace('/', '_')}.tflite"
    options.work.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        part = file.with_suffix(".part")
        part.write_bytes(trained_for_intervals(options, data, seed).content)
        part.rename(file)
    x, y = scaled(data.x_test[: options.images]), data.y_test[: options.images]
    radius = options.radius / 255
    plain = certify(file, x, y, "linf", "interval", step=radius, max_steps=1)
    found = certify(
        file,
        x,
        y,
        "linf",
        "complete",
        eps=radius,
        seconds=options.seconds,
        resume=file.with_suffix(f".{options.radius:g}.jsonl"),
    )
    assert isinstance(found, CompleteCertificate)
    later = [d.seconds for d in found.decisions if d.stage != "interval"]
    stages: dict[str, int] = {}
    for decision in found.decisions:
        key = f"{decision.verdict}, {decision.stage}"
        stages[key] = stages.get(key, 0) + 1
    return {
        "accuracy": {
            "clean": found.clean_accuracy,
            "certified by intervals": plain.certified_accuracy(radius),
            "verified": found.share("verified"),
            "broken": found.share("broken"),
            "unknown": found.share("unknown"),
        },
        "decided": stages,
        "seconds": {
            "in all": float(sum(d.seconds for d in found.decisions)),
            "median beyond intervals": float(np.median(later)) if later else 0.0,
        },
        "KiB": file.stat().st_size / 1024,
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("results/complete_verification.json"))
    parser.add_argument("--work", type=Path, default=Path("runs/complete_verification"))
    parser.add_argument("--data", default="fashion_mnist", help="a name or path of tfdq.data.load")
    parser.add_argument("--train", type=int, help="training images; all by default")
    parser.add_argument("--images", type=int, default=200, help="test images")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--bits", type=int, default=4, help="of the activations")
    parser.add_argument("--eps", type=float, default=2.5 / 255, help="last eps of the training")
    parser.add_argument("--radius", type=float, default=1.0, help="certified, in steps of 1/255")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each image")
    parser.add_argument("--seeds", type=int, default=1, help="trainings, from seed 0")
    options = parser.parse_args(arguments)
    from tfdq.data import load
    from tfdq.experiments.run_folder import source_commit
    from tfdq.robustness.result_store import write_atomically
    from tfdq.robustness.versions import package_versions

    data = load(options.data).subset(options.train, None, seed=0)
    kept = {k: v for k, v in vars(options).items() if k not in ("out", "work", "seeds")}
    record: dict[str, Any] = {}
    if options.out.exists():
        record = json.loads(options.out.read_text(encoding="utf-8"))
    # What was measured with other settings makes room.
    runs = record.get("runs", {}) if record.get("settings") == kept else {}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for seed in range(options.seeds):
        if str(seed) not in runs:
            runs[str(seed)] = {
                **measure(options, data, seed),
                "versions": package_versions(),
                "commit": source_commit(),
            }
            content = {"settings": kept, "runs": runs}
            write_atomically(options.out, json.dumps(content, indent=1) + "\n")
    print(json.dumps(runs, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
