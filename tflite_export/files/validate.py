"""Check a file before any runtime sees it: a corrupt or hostile ``.tflite`` can crash the process.

Three gates, each a `ValueError` that says what is wrong and where:

1. the digest that `write` puts in every file (a file from another tool carries none),
2. the flatbuffer's structure, byte by byte (`read`),
3. the graph (here): order of operators, types, shapes, grids, options, sizes.
"""

from __future__ import annotations

import hmac
import math
from pathlib import Path

import numpy as np

from tflite_export.files.cost import check_cost, read_by_operators
from tflite_export.files.metadata import DIGEST_NAME, digest_of, golden_of, labels_of
from tflite_export.files.read import load, metadata_position, naming, read
from tflite_export.files.wire import File
from tflite_export.ir import schema
from tflite_export.ir.graph import BATCH, DTYPES, INTEGER_RANGES, IntegerGraph, Tensor
from tflite_export.ir.limits import DEFAULT, Limits
from tflite_export.ops import OPERATORS
from tflite_export.ops.checks import Problem

LARGEST_TENSOR = 1 << 30
"""Bytes of one sample's largest activation that are accepted, whatever the limits."""

_LARGEST_RANK = 6
_SMALLEST_SCALE = np.finfo(np.float32).tiny
"""The smallest normal number: LiteRT's delegate ends the process where a step has no inverse."""


def validate(source: str | Path | bytes, limits: Limits = DEFAULT) -> IntegerGraph:
    """Check a ``.tflite`` file wholly and return its graph.

    Args:
        source: path or bytes of the file.
        limits: what the file may cost.

    Returns:
        The graph; safe to hand to a runtime.

    Raises:
        ValueError: if the file is damaged, passes a limit, or holds an operator, type or option
            outside this package's set; names the file.
    """
    data = load(source)
    with naming(source):
        check_digest(data, limits)
        graph = read(data, limits=limits)
        limits.require("unpacked", read_by_operators(graph), len(data))
        check_graph(graph)
        check_cost(graph, len(data), limits)
        labels_of(graph)
        golden_of(graph, limits.allowed("golden", len(data)))
    return graph


def check_digest(data: bytes, limits: Limits = DEFAULT) -> bool:
    """Compare the digest in a file with the file.

    Args:
        data: the file.
        limits: how many bytes it may unpack to.

    Returns:
        Whether the file carries a digest.

    Raises:
        ValueError: if it does and the file is not what was written, or if it is one of this
            package's files without its digest.
    """
    start, size = metadata_position(data, DIGEST_NAME, limits)
    if not size:
        if File(data, limits).root(schema.FILE_IDENTIFIER).text(3) == schema.PRODUCER:
            raise ValueError("damaged file: it has lost its SHA-256; copy it again")
        return False
    if not hmac.compare_digest(bytes(data[start : start + size]), digest_of(data, start, size)):
        raise ValueError(
            "damaged file: its content does not have the SHA-256 stored in it; copy it again"
        )
    return True


def check_graph(graph: IntegerGraph) -> None:
    """Check a graph: every tensor, and every operator against its neighbours.

    Args:
        graph: the graph, read from a file or built by hand.

    Raises:
        ValueError: naming the tensor or operator that is wrong.
    """
    for position, tensor in enumerate(graph.tensors):
        _check_tensor(tensor, position)
    _check_order(graph)
    _check_known(graph)
    for position, operator in enumerate(graph.operators):
        where = f"operator {position} ({operator.kind})"
        spec = OPERATORS[operator.kind]
        count = len(operator.outputs)
        if count != 1 and not (spec.several and count):
            raise ValueError(f"{where} has {count} outputs, expected 1")
        for index in operator.outputs:
            output = graph.tensors[index]
            try:
                shape = spec.check(operator, graph.operands(operator), output)
            except Problem as problem:
                raise ValueError(f"{where}: {problem}") from None
            if shape != output.shape:
                raise ValueError(
                    f"{where}: output {output.name!r} has shape {output.shape}, expected {shape}"
                )


def _check_known(graph: IntegerGraph) -> None:
    """Name all operators that are not known at once, each with the first tensor it computes."""
    strange: dict[str, str] = {}
    narrow: dict[str, str] = {}
    for position, operator in enumerate(graph.operators):
        tensors = [graph.tensors[index] for index in (*operator.inputs, *operator.outputs)]
        known = operator.kind in OPERATORS and operator.options is not None
        wide = any(tensor.dtype == "int16" for tensor in tensors)
        if known and (not wide or OPERATORS[operator.kind].int16_in):
            continue
        name = next((graph.tensors[index].name for index in operator.outputs), "nothing")
        what = f"operator {position} ({operator.kind}), which computes {name!r}"
        (narrow if known else strange).setdefault(operator.kind, what)
    if narrow and not strange:
        taken = sorted(kind for kind, spec in OPERATORS.items() if spec.int16_in)
        raise ValueError(
            f"{'; '.join(narrow.values())}: not among those this package runs on int16 "
            f"activations, {', '.join(taken)}. If you trust the file: Interpreter(FILE, "
            "trusted=True), benchmark FILE --any-operators"
        )
    if strange:
        raise ValueError(
            f"{'; '.join(strange.values())}: not among those this package runs, "
            f"{', '.join(sorted(OPERATORS))}. If you trust the file: Interpreter(FILE, "
            "trusted=True), benchmark FILE --any-operators"
        )


def _check_tensor(tensor: Tensor, position: int) -> None:
    where = f"tensor {position} ({tensor.name!r})"
    if tensor.dtype not in DTYPES:
        raise ValueError(f"{where} has type {tensor.dtype}; supported: {', '.join(DTYPES)}")
    if len(tensor.shape) > _LARGEST_RANK:
        raise ValueError(f"{where} has {len(tensor.shape)} dimensions, at most {_LARGEST_RANK}")
    for axis, size in enumerate(tensor.shape):
        if not (size >= 1 or (size == BATCH and axis == 0)):
            raise ValueError(
                f"{where} has shape {tensor.shape}; sizes start at 1, only the first may be open"
            )
    count = math.prod(size for size in tensor.shape if size != BATCH)
    if count * DTYPES[tensor.dtype].itemsize > LARGEST_TENSOR:
        raise ValueError(
            f"{where} of shape {tensor.shape} is larger than {LARGEST_TENSOR} bytes a sample"
        )
    if tensor.data is not None and tuple(tensor.data.shape) != tensor.shape:
        raise ValueError(f"{where}: data of shape {tensor.data.shape}, declared {tensor.shape}")
    if tensor.quantization is not None:
        _check_quantization(tensor, where)


def _check_quantization(tensor: Tensor, where: str) -> None:
    grid = tensor.quantization
    if grid is None:
        return
    if tensor.dtype not in INTEGER_RANGES:
        raise ValueError(f"{where} is {tensor.dtype} and has a scale; only integers have one")
    if grid.scale.shape != grid.zero_point.shape or grid.scale.ndim != 1:
        raise ValueError(f"{where}: {grid.scale.shape} scales, {grid.zero_point.shape} zero points")
    if not (np.isfinite(grid.scale).all() and (grid.scale >= _SMALLEST_SCALE).all()):
        raise ValueError(f"{where} has a scale that is not a positive number: {grid.scale.min()}")
    low, high = INTEGER_RANGES[tensor.dtype]
    if (grid.zero_point < low).any() or (grid.zero_point > high).any():
        raise ValueError(f"{where} has a zero point outside [{low}, {high}]")
    if grid.scale.size > 1 or grid.axis:
        if not 0 <= grid.axis < len(tensor.shape):
            raise ValueError(f"{where}: channels on dimension {grid.axis} of {len(tensor.shape)}")
        if grid.scale.size != tensor.shape[grid.axis]:
            raise ValueError(
                f"{where}: {grid.scale.size} scales for {tensor.shape[grid.axis]} channels"
            )


def _check_order(graph: IntegerGraph) -> None:
    """Every operand exists when it is read; nothing is written twice, or for nobody to read."""
    count = len(graph.tensors)
    if not graph.inputs or not graph.outputs:
        raise ValueError("the graph has no inputs or no outputs")
    if len(set(graph.inputs)) != len(graph.inputs):
        raise ValueError("an input is listed twice")
    for index in (*graph.inputs, *graph.outputs):
        if not 0 <= index < count:
            raise ValueError(f"input or output {index} is none of the {count} tensors")
    ready = {i for i, tensor in enumerate(graph.tensors) if tensor.is_constant}
    if ready & set(graph.inputs):
        raise ValueError("a constant is listed as an input")
    for index in graph.inputs:
        tensor = graph.tensors[index]
        if tensor.shape[:1] not in ((BATCH,), (1,)):
            raise ValueError(
                f"input {tensor.name!r} has shape {tensor.shape}; the first size is the batch, "
                "which must be open or 1"
            )
    ready |= set(graph.inputs)
    for position, operator in enumerate(graph.operators):
        where = f"operator {position} ({operator.kind})"
        for index in operator.inputs:
            if index != -1 and not 0 <= index < count:
                raise ValueError(f"{where} reads tensor {index} of {count}")
            if index != -1 and index not in ready:
                raise ValueError(
                    f"{where} reads {graph.tensors[index].name!r} before it is computed"
                )
        for index in operator.outputs:
            if not 0 <= index < count:
                raise ValueError(f"{where} writes tensor {index} of {count}")
            if index in ready:
                raise ValueError(f"{where} overwrites {graph.tensors[index].name!r}")
            ready.add(index)
    for index in graph.outputs:
        if index not in ready or graph.tensors[index].is_constant:
            raise ValueError(f"output {graph.tensors[index].name!r} is never computed")
    read_somewhere = {i for operator in graph.operators for i in operator.inputs}
    read_somewhere |= set(graph.outputs)
    for position, operator in enumerate(graph.operators):
        for index in set(operator.outputs) - read_somewhere:
            # LiteRT's delegate computes a graph with such a result otherwise than without it.
            raise ValueError(
                f"operator {position} ({operator.kind}) computes {graph.tensors[index].name!r}, "
                "which is neither read nor an output"
            )
