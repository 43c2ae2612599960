"""The command line: ``python -m tflite_export run|benchmark|inspect|verify|selftest FILE``.

All but ``verify`` work where there is no TensorFlow.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: without the program's name; None for those of the process.

    Returns:
        The exit code: 0 good, 1 the file does not hold what was promised, 2 a mistake in the call
        or a damaged file.
    """
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tflite_export",
        description="Run, measure, look into and verify exported models.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = _command(commands, "run", _run, "run the model on images stored as .npy")
    run.add_argument(
        "input", help=".npy file of images, shape (n, ...), floats as trained on or raw integers"
    )
    run.add_argument("--output", help="write the outputs to this .npy file")
    run.add_argument("--raw", action="store_true", help="raw output integers instead of floats")
    run.add_argument("--top", type=int, default=1, help="classes to print for each image")
    run.add_argument("--batch", type=int, default=64, help="images at once")
    timing = _command(
        commands, "benchmark", _benchmark, "measure latency, throughput, size, memory"
    )
    timing.add_argument("other", nargs="?", help="a second file, measured in turns with the first")
    timing.add_argument("--batch", type=int, nargs="+", default=[1, 32], help="batch sizes")
    timing.add_argument("--calls", type=int, default=100, help="timed calls in each setting")
    timing.add_argument("--warm-up", type=int, default=10, help="calls before them")
    timing.add_argument("--seconds", type=float, default=10.0, help="longest time of a setting")
    timing.add_argument("--trusted", action="store_true", help="take a file of another tool")
    look = _command(
        commands, "inspect", _inspect, "list layers, types, scales, bits in use, MACs", runs=False
    )
    look.add_argument("--json", action="store_true", help="as JSON")
    verify = _command(
        commands, "verify", _verify, "compare with the integer twin, prove integer only"
    )
    verify.add_argument("--model", help="the trained model (a file tfdq.load_model takes)")
    verify.add_argument("--input", help=".npy file of images; the golden vectors otherwise")
    _command(commands, "selftest", _selftest, "does this runtime compute the trained integers?")
    return parser


def _command(
    commands: Any, name: str, function: Callable[..., int], text: str, runs: bool = True
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text)
    parser.add_argument("file", help="the .tflite file")
    parser.set_defaults(command=function)
    if not runs:
        return parser
    if name == "benchmark":
        parser.add_argument("--threads", type=int, nargs="+", help="numbers of threads")
    else:
        parser.add_argument("--threads", type=int, default=1, help="number of threads")
    if name != "verify":
        parser.add_argument(
            "--kernels",
            default="default",
            choices=("default", "builtin", "reference"),
            help="kernel set",
        )
        parser.add_argument(
            "--runtime",
            choices=("ai-edge-litert", "tflite-runtime", "tensorflow"),
            help="which runtime",
        )
    return parser


def _run(options: argparse.Namespace) -> int:
    from tflite_export.runtime import Interpreter

    model = Interpreter(
        options.file,
        threads=options.threads,
        kernels=options.kernels,
        runtime=options.runtime,
        batch_size=options.batch,
    )
    images = np.load(options.input, allow_pickle=False)
    raw = options.raw or images.dtype == np.int8
    results = model.integers(images, progress=True) if raw else model.predict(images, progress=True)
    if isinstance(results, list):
        raise ValueError("the model has several outputs; use tflite_export.Interpreter from Python")
    if options.output:
        np.save(options.output, results)
        print(f"{len(results)} outputs in {options.output}", file=sys.stderr)
        return 0
    labels = model.labels
    for position, row in enumerate(results):
        flat = row.reshape(-1)
        best = np.argsort(-flat.astype(np.float64), kind="stable")[: max(options.top, 1)]
        print(position, *(f"{labels[i] if labels else i}:{flat[i]:.6g}" for i in best), sep="\t")
    return 0


def _benchmark(options: argparse.Namespace) -> int:
    from tflite_export.timing import benchmark, table

    timings = benchmark(
        options.file,
        options.other,
        batches=options.batch,
        threads=options.threads,
        calls=options.calls,
        warm_up=options.warm_up,
        seconds=options.seconds,
        kernels=options.kernels,
        runtime=options.runtime,
        trusted=options.trusted,
        progress=lambda line: print(line, file=sys.stderr),
    )
    print(table(timings))
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from tflite_export.inspection import describe, table
    from tflite_export.metadata import facts_of
    from tflite_export.proof import integer_only
    from tflite_export.read import read
    from tflite_export.validate import check_digest

    content = Path(options.file).read_bytes()
    check_digest(content)
    graph = read(content, strict=False)
    proof = integer_only(content)
    facts = facts_of(graph)
    if options.json:
        report = {"layers": describe(graph), "facts": facts, "integer_only": asdict(proof)}
        print(json.dumps(report, indent=1))
        return 0
    print(table(graph, len(content)))
    print(proof)
    for name, value in sorted(facts.items()):
        print(f"{name}: {json.dumps(value)}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from tflite_export.metadata import golden_of
    from tflite_export.parity import verify
    from tflite_export.proof import integer_only
    from tflite_export.reference import dequantize
    from tflite_export.validate import validate

    graph = validate(options.file)
    proof = integer_only(options.file)
    print(proof)
    if options.input:
        images = np.load(options.input, allow_pickle=False)
    else:
        golden = golden_of(graph)
        if golden is None:
            raise ValueError("the file carries no golden vectors; give images with --input")
        tensors = [graph.tensors[i] for i in graph.inputs]
        parts = [
            part if tensor.quantization is None else dequantize(part, tensor)
            for part, tensor in zip(golden.inputs, tensors, strict=True)
        ]
        images = parts if len(parts) > 1 else parts[0]
    model = None
    if options.model:
        from tfdq import load_model

        model = load_model(options.model)
    report = verify(model, options.file, images, threads=options.threads)
    print(report)
    return 0 if report.exact and proof else 1


def _selftest(options: argparse.Namespace) -> int:
    from tflite_export.device import selftest

    result = selftest(
        options.file, kernels=options.kernels, runtime=options.runtime, threads=options.threads
    )
    print(result)
    return 0 if result else 1


if __name__ == "__main__":
    sys.exit(main())
