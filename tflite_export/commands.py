"""The commands of ``python -m tflite_export``: run, benchmark, inspect, verify, selftest."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tflite_export.ir.limits import Limits


def run(options: argparse.Namespace) -> int:
    """Print the best classes of each image, or write the outputs to a file."""
    from tflite_export.runtime.interpreter import Interpreter

    if options.top < 1:
        raise ValueError(f"--top must be at least 1, got {options.top}")
    model = Interpreter(
        options.file,
        threads=options.threads,
        kernels=options.kernels,
        runtime=options.runtime,
        batch_size=options.batch_size,
        limits=Limits.parse(options.cost_limit),
    )
    images = _images(options.images)
    raw = options.raw or images.dtype == np.int8
    compute = model.integers if raw else model.predict
    results = compute(images, progress=not options.quiet)
    if isinstance(results, list):
        raise ValueError("the model has several outputs; use tflite_export.Interpreter from Python")
    if options.out:
        np.save(options.out, results)
        _print({"outputs": len(results), "file": options.out}, None, options)
        if not options.quiet:
            print(f"{len(results)} outputs in {options.out}", file=sys.stderr)
        return 0
    labels = model.labels
    found = []
    for row in results:
        flat = row.reshape(-1)
        best = np.argsort(-flat.astype(np.float64), kind="stable")[: options.top]
        named = len(labels) == flat.size
        found.append([(labels[i] if named else int(i), flat[i].item()) for i in best])
    lines = [
        "\t".join([str(position), *(f"{name}:{score:.6g}" for name, score in best)])
        for position, best in enumerate(found)
    ]
    _print(
        [[{"class": name, "score": score} for name, score in best] for best in found],
        "\n".join(lines),
        options,
    )
    return 0


def benchmark(options: argparse.Namespace) -> int:
    """Print latency, throughput, size and memory of one file, or of two in turns."""
    from tflite_export.runtime.timing import benchmark, table

    def tell(line: str) -> None:
        if not options.quiet:
            print(line, file=sys.stderr)

    timings = benchmark(
        options.file,
        options.other,
        batches=options.batch_size,
        threads=options.threads,
        calls=options.calls,
        warm_up=options.warm_up,
        seconds=options.seconds,
        kernels=options.kernels,
        runtime=options.runtime,
        trusted=options.any_operators,
        limits=Limits.parse(options.cost_limit),
        progress=tell,
    )
    _print([asdict(timing) for timing in timings], table(timings), options)
    return 0


def inspect(options: argparse.Namespace) -> int:
    """Print layers, types, scales, bits in use and MACs; or what a microcontroller needs."""
    from tflite_export.files.c_array import c_array
    from tflite_export.files.metadata import facts_of
    from tflite_export.files.proof import integer_only
    from tflite_export.files.read import load, naming, read
    from tflite_export.files.validate import check_digest
    from tflite_export.runtime.inspection import describe, table
    from tflite_export.runtime.micro import least_arena, resolver

    limits = Limits.parse(options.cost_limit)
    content = load(options.file)
    with naming(options.file):
        check_digest(content, limits)
        graph = read(content, strict=False, limits=limits)
        proof = integer_only(content, limits)
        facts = facts_of(graph)
        micro = (resolver(graph), least_arena(graph)) if options.resolver else None
    if options.c_array:
        Path(options.c_array).write_text(c_array(content), encoding="ascii")
    if micro is not None:
        registered, least = micro
        text = f"{registered}\n// The arena holds at least {least} bytes of activations."
        _print({"resolver": registered, "arena_at_least": least}, text, options)
        return 0
    report = {"layers": describe(graph), "facts": facts, "integer_only": asdict(proof)}
    lines = [f"{name}: {json.dumps(value)}" for name, value in sorted(facts.items())]
    _print(report, "\n".join([table(graph, len(content)), str(proof), *lines]), options)
    return 0


def verify(options: argparse.Namespace) -> int:
    """Compare runtime, integer twin and, if given, the trained model; prove integers only."""
    try:
        importlib.import_module("tflite_export.twin.integer_twin")
        from tflite_export.conversion.parity import verify
    except ImportError as error:
        raise ImportError(
            "verify compares with the trained network and needs tfdq with TensorFlow; here, "
            f"selftest says whether this runtime computes the trained integers ({error})"
        ) from error
    from tflite_export.files.proof import integer_only
    from tflite_export.files.read import naming
    from tflite_export.ir.affine import dequantize
    from tflite_export.runtime.interpreter import Interpreter

    limits = Limits.parse(options.cost_limit)
    loaded = Interpreter(options.file, limits=limits)
    proof = integer_only(options.file, limits)
    images: Any
    if options.images:
        images = _images(options.images)
    else:
        golden = loaded.golden()
        tensors = loaded.input_tensors
        parts = [
            part if tensor.quantization is None else dequantize(part, tensor)
            for part, tensor in zip(golden.inputs, tensors, strict=True)
        ]
        images = parts if len(parts) > 1 else parts[0]
    model = None
    if options.trained:
        from tfdq import load_model

        model = load_model(options.trained, safe_mode=not options.trust)
    with naming(options.file):
        report = verify(model, loaded.content, images, threads=options.threads, limits=limits)
    found = {
        "exact": report.exact,
        "parity": report.as_dict(),
        "integer_only": asdict(proof),
    }
    _print(found, f"{proof}\n{report}", options)
    return 0 if report.exact and proof else 1


def selftest(options: argparse.Namespace) -> int:
    """Say whether this runtime on this processor computes the file's golden integers."""
    from tflite_export.runtime.device import selftest

    if not options.make and (options.out or options.images):
        raise ValueError("--out and --images are for a copy with golden vectors: add --make")
    result = selftest(
        _with_golden(options) if options.make else options.file,
        kernels=options.kernels,
        runtime=options.runtime,
        threads=options.threads,
        limits=Limits.parse(options.cost_limit),
    )
    _print({"passed": bool(result), **asdict(result)}, str(result), options)
    return 0 if result else 1


def _with_golden(options: argparse.Namespace) -> str:
    """Write a copy of the file with golden vectors, and return its path."""
    from tflite_export.runtime.golden import with_golden

    if not options.out:
        raise ValueError("--make writes a copy of the file; name it: --out COPY.tflite")
    if Path(options.out).exists() and Path(options.out).samefile(options.file):
        raise ValueError(f"--out {options.out!r} is the file itself; name a copy")
    content = with_golden(
        options.file,
        inputs=_images(options.images) if options.images else None,
        kernels=options.kernels,
        runtime=options.runtime,
        threads=options.threads,
        limits=Limits.parse(options.cost_limit),
    )
    Path(options.out).write_bytes(content)
    return str(options.out)


def _images(path: str) -> np.ndarray:
    """Return the array of a ``.npy`` file; anything else is refused, pickled objects above all."""
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"no images at {path!r}; give a file written with np.save('images.npy', images)"
        )
    try:
        found: np.ndarray = np.lib.format.open_memmap(path, mode="r")
    except ValueError as error:
        raise ValueError(
            f"{path!r} is not a .npy file of numbers; write one with np.save('images.npy', images)"
        ) from error
    return found


def _print(figures: Any, text: str | None, options: argparse.Namespace) -> None:
    """Print a result on stdout, as JSON or for people; None: there is nothing to say to people."""
    if options.json:
        print(json.dumps(figures, default=str))
    elif text is not None:
        print(text)
