"""Golden vectors for a file that carries none: what one runtime computes, for comparison."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tflite_export.files.metadata import (
    GOLDEN_NAME,
    GOLDEN_SOURCE,
    MODEL_NAME,
    GoldenVectors,
    facts_of,
    pack_facts,
    pack_golden,
)
from tflite_export.files.read import naming
from tflite_export.ir.affine import dequantize, quantize
from tflite_export.ir.graph import DTYPES, INTEGER_RANGES, IntegerGraph, Tensor
from tflite_export.ir.limits import DEFAULT, Limits
from tflite_export.runtime.input_check import check_inputs, grid_of
from tflite_export.runtime.interpreter import Interpreter

_SEED = 0


def with_golden(
    model: str | Path | bytes,
    *,
    inputs: np.ndarray | Sequence[np.ndarray] | None = None,
    count: int = 24,
    kernels: str = "default",
    runtime: str | None = None,
    threads: int = 1,
    limits: Limits = DEFAULT,
) -> bytes:
    """Return a copy of a file with golden vectors that the runtime on this machine computes.

    `selftest` on another runtime, kernel set or processor then says whether it computes the same
    integers. That is agreement between runtimes; nothing is said about the network that was
    trained. Operators, tensors and all else in the file stay as they are.

    Args:
        model: path or bytes of a ``.tflite`` file without golden vectors.
        inputs: real inputs as for `Interpreter.integers`, of which the first ``count`` are taken;
            None draws integers from ranges of random width on the input grids, and the two ends.
        count: number of golden vectors, at least 1.
        kernels: as for `Interpreter`.
        runtime: as for `Interpreter`.
        threads: as for `Interpreter`.
        limits: as for `Interpreter`.

    Returns:
        The bytes of the copy, with a SHA-256 of themselves.

    Raises:
        ValueError: the file is damaged, costs more than its limits or carries golden vectors; a
            float input has no grid to draw from; or an output is the same on all inputs.
        ImportError: LiteRT's schema is not installed.
    """
    from tflite_export.files.write import with_metadata

    if not isinstance(count, int) or count < 1:
        raise ValueError(f"count is {count!r}, expected a whole number of at least 1")
    interpreter = Interpreter(
        model, kernels=kernels, runtime=runtime, threads=threads, limits=limits
    )
    graph = interpreter.graph
    with naming(model):
        if GOLDEN_NAME in graph.metadata:
            raise ValueError("it carries golden vectors already; run selftest without --make")
        feeds = _drawn(graph, count) if inputs is None else _given(graph, inputs, count)
        raw = interpreter.integers(feeds if len(feeds) > 1 else feeds[0])
        outputs = raw if isinstance(raw, list) else [raw]
        for index, values in zip(graph.outputs, outputs, strict=True):
            if len(values) > 1 and (values == values[:1]).all():
                raise ValueError(
                    f"output {graph.tensors[index].name!r} is the same on all {len(values)} "
                    "inputs, which tests little; give real inputs: --images FILE.npy"
                )
    source = f"{interpreter.runtime} {interpreter.version}, {kernels} kernels, {platform.machine()}"
    facts = {**facts_of(graph), GOLDEN_SOURCE: source}
    golden = GoldenVectors(feeds, outputs)
    return with_metadata(
        interpreter.content, {MODEL_NAME: pack_facts(facts), GOLDEN_NAME: pack_golden(golden)}
    )


def _given(
    graph: IntegerGraph, inputs: np.ndarray | Sequence[np.ndarray], count: int
) -> list[np.ndarray]:
    """The first inputs that were given, in the types of the graph's inputs."""
    feeds = []
    for array, index in zip(check_inputs(inputs, graph), graph.inputs, strict=True):
        tensor, values = graph.tensors[index], array[:count]
        if not len(values):
            raise ValueError("no inputs given, expected at least one")
        own = DTYPES[tensor.dtype]
        raw = values.dtype == own or tensor.quantization is None
        feeds.append(values.astype(own) if raw else quantize(values, tensor))
    return feeds


def _drawn(graph: IntegerGraph, count: int) -> list[np.ndarray]:
    """Random inputs in the types of the graph's inputs; the first two are the ends of the grids."""
    rng = np.random.default_rng(_SEED)
    feeds = []
    for index in graph.inputs:
        tensor = graph.tensors[index]
        grid = tensor if tensor.dtype in INTEGER_RANGES else grid_of(graph, index)
        if grid.dtype not in INTEGER_RANGES:
            raise ValueError(
                f"input {tensor.name!r} is {tensor.dtype} and no operator states its range; give "
                "real inputs: --images FILE.npy"
            )
        integers = _integers(grid, (count, *tensor.shape[1:]), rng)
        feeds.append(integers if grid is tensor else dequantize(integers, grid))
    return feeds


def _integers(grid: Tensor, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Integers of a type, each sample from a range of its own."""
    low, high = INTEGER_RANGES[grid.dtype]
    samples = []
    for place in range(shape[0]):
        drawn = np.sort(rng.integers(low, high, 2, endpoint=True))
        least, most = {0: (low, low), 1: (high, high)}.get(place, (int(drawn[0]), int(drawn[1])))
        samples.append(rng.integers(least, most, shape[1:], endpoint=True))
    return np.stack(samples).astype(DTYPES[grid.dtype])
