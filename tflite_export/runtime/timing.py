"""Latency, throughput, size and memory of a file on this machine; two files measured in turns."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tflite_export.files.read import load
from tflite_export.ir.graph import DTYPES, INTEGER_RANGES
from tflite_export.ir.limits import DEFAULT, Limits
from tflite_export.runtime.interpreter import Interpreter, check_threads
from tflite_export.runtime.memory import peak_memory


@dataclass(frozen=True)
class Timing:
    """How fast one file is in one setting.

    Attributes:
        file: its name.
        batch: samples in one call.
        threads: of the runtime.
        median_ms: of one call.
        p90_ms: nine of ten calls are faster.
        p99_ms: 99 of 100 calls are faster.
        per_second: samples per second, from the median.
        size: bytes of the file.
        peak_mib: peak memory that loading the file and one call add to a fresh process; None if
            unknown.
        ratio: time of the other file over the time of this one, median over pairs of calls; None
            without another.
    """

    file: str
    batch: int
    threads: int
    median_ms: float
    p90_ms: float
    p99_ms: float
    per_second: float
    size: int
    peak_mib: float | None = None
    ratio: float | None = None


def benchmark(
    model: str | Path,
    other: str | Path | None = None,
    *,
    batches: Sequence[int] = (1, 32),
    threads: Sequence[int] | None = None,
    calls: int = 100,
    warm_up: int = 10,
    seconds: float = 10.0,
    kernels: str = "default",
    runtime: str | None = None,
    trusted: bool = False,
    limits: Limits = DEFAULT,
    memory: bool = True,
    progress: Callable[[str], None] | None = None,
) -> list[Timing]:
    """Measure a file, or two files call by call in turns so that both see the same machine.

    Args:
        model: path of a ``.tflite`` file.
        other: path of another to compare with.
        batches: batch sizes.
        threads: numbers of threads; None for 1, 2, 4 ... up to the processor's.
        calls: timed calls in each setting.
        warm_up: calls before them.
        seconds: stop a setting after this time, with at least five calls.
        kernels: as for `Interpreter`.
        runtime: as for `Interpreter`.
        trusted: as for `Interpreter`; the other file is often another tool's.
        limits: as for `Interpreter`.
        memory: measure the peak memory in a fresh process.
        progress: called with a line of text before each setting.

    Returns:
        One entry for each file and setting.

    Raises:
        ValueError: if a file is damaged or an argument is wrong.
    """
    if calls < 1 or warm_up < 0 or any(batch < 1 for batch in batches):
        raise ValueError(f"calls {calls}, warm_up {warm_up}, batches {tuple(batches)}: too small")
    files = [Path(model)] + ([] if other is None else [Path(other)])
    counts = list(threads) if threads is not None else thread_counts()
    for count in counts:
        check_threads(count)
    results = []
    for thread_count in counts:
        loaded = [
            Interpreter(
                f,
                threads=thread_count,
                kernels=kernels,
                runtime=runtime,
                trusted=trusted,
                limits=limits,
            )
            for f in files
        ]
        for batch in batches:
            if progress is not None:
                progress(f"batch {batch}, {thread_count} threads")
            times = measure(loaded, batch, calls, warm_up, seconds)
            for position, file in enumerate(files):
                ratio = None
                if len(files) == 2:
                    pairs = zip(times[1 - position], times[position], strict=True)
                    ratio = statistics.median(theirs / ours for theirs, ours in pairs)
                peak = peak_memory(file, thread_count, batch, kernels, runtime) if memory else None
                results.append(_timing(file, batch, thread_count, times[position], peak, ratio))
    return results


def thread_counts() -> list[int]:
    """1, 2, 4 ... up to the number of processors."""
    available = os.cpu_count() or 1
    return sorted({1, available, *(2**i for i in range(8) if 2**i <= available)})


def measure(
    models: Sequence[Interpreter], batch: int, calls: int, warm_up: int, seconds: float
) -> list[list[float]]:
    """Seconds of each call, the models taking turns.

    Args:
        models: loaded files.
        batch: samples in a call.
        calls: timed calls.
        warm_up: calls before them.
        seconds: stop after this time, with at least five calls.

    Returns:
        One list for each model, all of one length.
    """
    feeds = [random_feeds(model, batch) for model in models]
    for _ in range(warm_up):
        for model, feed in zip(models, feeds, strict=True):
            model.invoke(feed)
    times: list[list[float]] = [[] for _ in models]
    began = time.perf_counter()
    for call in range(calls):
        if call >= 5 and time.perf_counter() - began > seconds:
            break
        order = range(len(models)) if call % 2 == 0 else range(len(models) - 1, -1, -1)
        for position in order:
            start = time.perf_counter()
            models[position].invoke(feeds[position])
            times[position].append(time.perf_counter() - start)
    return times


def random_feeds(model: Interpreter, batch: int) -> list[np.ndarray]:
    """Seeded noise in the inputs' own types, ``batch`` samples."""
    rng = np.random.default_rng(0)
    feeds = []
    for tensor in model.input_tensors:
        shape = (batch, *tensor.shape[1:])
        if tensor.dtype in INTEGER_RANGES:
            low, high = INTEGER_RANGES[tensor.dtype]
            feeds.append(rng.integers(low, high, shape, endpoint=True).astype(DTYPES[tensor.dtype]))
        else:
            feeds.append(rng.random(shape, np.float32))
    return feeds


def table(timings: Sequence[Timing]) -> str:
    """The timings as text, for a terminal."""
    paired = any(t.ratio is not None for t in timings)
    header = [
        "file",
        "batch",
        "threads",
        "median ms",
        "p90 ms",
        "p99 ms",
        "images/s",
        "bytes",
        "peak MiB",
    ]
    lines = [header + (["speed-up"] if paired else [])]
    for t in timings:
        line = [
            t.file,
            str(t.batch),
            str(t.threads),
            f"{t.median_ms:.3f}",
            f"{t.p90_ms:.3f}",
            f"{t.p99_ms:.3f}",
            f"{t.per_second:,.0f}",
            f"{t.size:,}",
            "?" if t.peak_mib is None else f"{t.peak_mib:.1f}",
        ]
        lines.append(line + ([f"{t.ratio:.3f}"] if t.ratio is not None else []))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in lines
    )


def _timing(
    file: Path,
    batch: int,
    threads: int,
    times: list[float],
    peak: float | None,
    ratio: float | None,
) -> Timing:
    milliseconds = np.array(times) * 1e3
    median, p90, p99 = (float(v) for v in np.percentile(milliseconds, [50, 90, 99]))
    size = len(load(file))
    return Timing(
        file.name, batch, threads, median, p90, p99, batch * 1e3 / median, size, peak, ratio
    )
