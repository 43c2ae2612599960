"""Run the benchmarks, all or the named ones, and print their ratios: ``python -m benchmarks``."""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys

import benchmarks


def main() -> int:
    """Run each benchmark module's ``main``; return the number of those that failed."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    known = sorted(m.name for m in pkgutil.iter_modules(benchmarks.__path__) if m.name[0] != "_")
    wanted = sys.argv[1:] or known
    unknown = sorted(set(wanted) - set(known))
    if unknown:
        print(f"error: no benchmark {', '.join(unknown)}; there are {', '.join(known)}")
        return 2
    failed = 0
    for name in wanted:
        print(f"== {name}", flush=True)
        module = importlib.import_module(f"benchmarks.{name}")
        sys.argv = [name]
        failed += bool(module.main())
    return failed


if __name__ == "__main__":
    sys.exit(main())
