"""Run the benchmarks, all or the named ones, and print their ratios: ``python -m benchmarks``."""

from __future__ import annotations

import importlib
import os
import sys

# The studies (certified_accuracy, complete_verification, demo_beta, fine_tuning, learned_steps,
# post_training) are run by name.
RATIOS = ("training", "keras3", "export", "attacks", "lipschitz", "data")


def main() -> int:
    """Run each benchmark module's ``main``; return the number of those that failed."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    wanted = sys.argv[1:] or list(RATIOS)
    unknown = sorted(set(wanted) - set(RATIOS))
    if unknown:
        print(f"error: no benchmark {', '.join(unknown)}; there are {', '.join(RATIOS)}")
        return 2
    failed = 0
    for name in wanted:
        print(f"== {name}", flush=True)
        module = importlib.import_module(f"benchmarks.{name}")
        failed += bool(module.main())
    return failed


if __name__ == "__main__":
    sys.exit(main())
