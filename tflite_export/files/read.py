"""Read a ``.tflite`` file into an `IntegerGraph`, every byte offset checked."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tflite_export.files.wire import File, Table
from tflite_export.ir import schema
from tflite_export.ir.graph import (
    BATCH,
    DTYPES,
    IntegerGraph,
    NoOptions,
    Operator,
    Options,
    Quantization,
    Tensor,
)
from tflite_export.ir.limits import DEFAULT, Limits
from tflite_export.ops import OPERATORS

_LARGEST_RANK = 8
_TENSORS_OF_AN_OPERATOR = 4


def load(source: str | Path | bytes | bytearray) -> bytes:
    """The bytes of a model given as a path or as the bytes themselves.

    Raises:
        ValueError: if there is no such file.
        TypeError: for anything else.
    """
    if isinstance(source, bytes):
        return source
    if isinstance(source, bytearray):
        return bytes(source)
    if isinstance(source, str | Path):
        path = Path(source)
        if not path.is_file():
            raise ValueError(f"no such file: {path}")
        return path.read_bytes()
    raise TypeError(f"a model is a path or bytes, not {type(source).__name__}")


@contextmanager
def naming(source: object) -> Iterator[None]:
    """Put the path of a file in front of what is found wrong with it.

    Args:
        source: the path of the file; with anything else, such as its bytes, errors pass unchanged.

    Raises:
        ValueError: the one raised inside, with the path.
    """
    try:
        yield
    except ValueError as error:
        if isinstance(source, str | Path):
            raise ValueError(f"{str(source)!r}: {error}") from error
        raise


def read(
    source: str | Path | bytes, *, strict: bool = True, limits: Limits = DEFAULT
) -> IntegerGraph:
    """The graph in a ``.tflite`` file.

    Args:
        source: path or bytes of the file.
        strict: refuse everything that this package does not know (schema fields, several
            subgraphs), as is right for a file of unknown origin that is to be run. With False
            unknown operators are kept by name, without options, as is right for looking at a file.
        limits: how many operators it may have, and how many bytes it may unpack to.

    Returns:
        The graph; constants are read-only views of the file's bytes.

    Raises:
        ValueError: if the file is damaged, passes a limit or, with ``strict``, holds what the
            package does not know; names the file.
    """
    data = load(source)
    with naming(source):
        return _Reader(data, strict, limits).graph()


def metadata_position(
    data: bytes | bytearray, name: str, limits: Limits = DEFAULT
) -> tuple[int, int]:
    """Where in a file the content of a metadata entry lies.

    Args:
        data: the file.
        name: of the entry.
        limits: how many bytes the file may unpack to.

    Returns:
        (first byte, size in bytes); ``(0, 0)`` if there is no such entry.

    Raises:
        ValueError: if the file is damaged.
    """
    model = File(data, limits).root(schema.FILE_IDENTIFIER)
    buffers = model.tables(4)
    for entry in model.tables(6):
        if entry.text(0) == name:
            index = entry.integer(1, "uint32")
            if index >= len(buffers):
                raise ValueError(
                    f"damaged file: metadata {name!r} names buffer {index} of {len(buffers)}"
                )
            return buffers[index].vector(0, 1)
    return 0, 0


class _Reader:
    """One pass over a file."""

    def __init__(self, data: bytes, strict: bool, limits: Limits) -> None:
        self.strict = strict
        self.limits = limits
        self.file = File(data, limits)
        self.model = self.file.root(schema.FILE_IDENTIFIER)
        self.only(self.model, range(8), "the model")
        self.buffers = self.model.tables(4)
        for index, buffer in enumerate(self.buffers):
            self.only(buffer, (0,), f"buffer {index}")
        self.codes = [self.code(entry) for entry in self.model.tables(1)]

    def only(self, table: Table, known: Any, what: str) -> None:
        if self.strict:
            table.require_only(known, what)

    def graph(self) -> IntegerGraph:
        version = self.model.integer(0, "uint32")
        if version != schema.SCHEMA_VERSION:
            raise ValueError(f"schema version {version}, expected {schema.SCHEMA_VERSION}")
        subgraphs = self.model.tables(2)
        if not subgraphs or (self.strict and len(subgraphs) != 1):
            raise ValueError(f"{len(subgraphs)} subgraphs, expected 1")
        subgraph = subgraphs[0]
        self.only(subgraph, range(5), "the subgraph")
        tensors, operators = subgraph.tables(0), subgraph.tables(3)
        count = max(len(operators), len(tensors) // _TENSORS_OF_AN_OPERATOR)
        self.limits.require("operators", count, len(self.file.data))
        graph = IntegerGraph(
            tensors=[self.tensor(entry) for entry in tensors],
            operators=[self.operator(entry, i, len(tensors)) for i, entry in enumerate(operators)],
            inputs=_indices(subgraph, 1, len(tensors), "an input"),
            outputs=_indices(subgraph, 2, len(tensors), "an output"),
            name=subgraph.text(4),
            metadata=self.metadata(),
        )
        for signature in self.model.tables(7):
            self.signature(signature, graph)
        return graph

    def code(self, entry: Table) -> str:
        """The operator's name; of the two fields for its code the larger counts."""
        self.only(entry, range(4), "an operator code")
        number = max(entry.integer(0, "int8"), entry.integer(3, "int32"))
        if entry.text(1):
            return f"CUSTOM:{entry.text(1)}"
        if 0 <= number < len(schema.OPERATOR_NAMES):
            return schema.OPERATOR_NAMES[number]
        return f"OPERATOR_{number}"

    def content(self, index: int, what: str) -> np.ndarray:
        if index >= len(self.buffers):
            raise ValueError(f"damaged file: {what} names buffer {index} of {len(self.buffers)}")
        return self.buffers[index].array(0, "u1")

    def tensor(self, entry: Table) -> Tensor:
        name = entry.text(3)
        self.only(entry, (0, 1, 2, 3, 4, 7, 8), f"tensor {name!r}")
        number = entry.integer(1, "int8")
        if not 0 <= number < len(schema.TENSOR_TYPES):
            raise ValueError(f"damaged file: tensor {name!r} has the unknown type {number}")
        dtype = schema.TENSOR_TYPES[number]
        stored = tuple(int(size) for size in entry.array(0, "<i4"))
        signature = tuple(int(size) for size in entry.array(7, "<i4"))
        if signature and (
            len(signature) != len(stored)
            or any(s not in (-1, size) for s, size in zip(signature, stored, strict=True))
        ):
            raise ValueError(f"tensor {name!r}: shape {stored} and signature {signature} disagree")
        if self.strict and any(
            s == BATCH and size != 1 for s, size in zip(signature, stored, strict=False)
        ):
            # LiteRT plans its memory with the stored sizes, and its delegate mixes the two up.
            raise ValueError(
                f"tensor {name!r}: sizes {stored} are stored where {signature} are declared; an "
                "open size must be stored as 1"
            )
        shape = signature or stored
        if len(shape) > _LARGEST_RANK:
            raise ValueError(f"tensor {name!r} has {len(shape)} dimensions")
        if number == schema.TENSOR_TYPES.index("int4"):
            self.file.meter.spend(math.prod(shape) if min(shape, default=0) > 0 else 0)
        content = self.content(entry.integer(2, "uint32"), f"tensor {name!r}")
        data = _constant(name, content, dtype, shape) if content.size else None
        return Tensor(name, shape, dtype, self.quantization(entry.table(4), name), data)

    def quantization(self, entry: Table | None, name: str) -> Quantization | None:
        if entry is None:
            return None
        self.only(entry, (0, 1, 2, 3, 6), f"the quantization of tensor {name!r}")
        scale, zero_point = entry.array(2, "<f4"), entry.array(3, "<i8")
        if not scale.size:
            return None
        if zero_point.size != scale.size:
            raise ValueError(f"tensor {name!r}: {scale.size} scales, {zero_point.size} zero points")
        return Quantization(scale, zero_point, entry.integer(6, "int32"))

    def operator(self, entry: Table, position: int, count: int) -> Operator:
        index = entry.integer(0, "uint32")
        if index >= len(self.codes):
            raise ValueError(
                f"damaged file: operator {position} names code {index} of {len(self.codes)}"
            )
        kind = self.codes[index]
        where = f"operator {position} ({kind})"
        self.only(entry, (0, 1, 2, 3, 4), where)
        spec = OPERATORS.get(kind)
        options = None if spec is None else self.options(entry, spec.schema, where)
        inputs = _indices(entry, 1, count, where, least=-1)
        return Operator(kind, inputs, _indices(entry, 2, count, where), options)

    def options(self, entry: Table, layout: schema.OperatorSchema, what: str) -> Options:
        union, table = entry.integer(3, "uint8"), entry.table(4)
        if layout.options is NoOptions:
            return NoOptions()
        if table is None or union != layout.union:
            raise ValueError(f"{what} carries options of kind {union}, expected {layout.union}")
        self.only(
            table, (*(f.slot for f in layout.fields), *layout.ignored), f"the options of {what}"
        )
        values: dict[str, Any] = {}
        for option in layout.fields:
            if option.kind == "list":
                values[option.name] = tuple(int(n) for n in table.array(option.slot, "<i4"))
                continue
            value = table.scalar(option.slot, option.kind, option.default)
            if option.choices:
                if not 0 <= value < len(option.choices):
                    raise ValueError(
                        f"{what}: {option.name} is {value}, expected 0..{len(option.choices) - 1}"
                    )
                values[option.name] = option.choices[int(value)]
            else:
                values[option.name] = bool(value) if option.kind == "bool" else value
        return layout.options(**values)

    def metadata(self) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for entry in self.model.tables(6):
            self.only(entry, (0, 1), "a metadata entry")
            name = entry.text(0)
            found[name] = self.content(entry.integer(1, "uint32"), f"metadata {name!r}").tobytes()
        return found

    def signature(self, entry: Table, graph: IntegerGraph) -> None:
        self.only(entry, (0, 1, 2, 4), "a signature")
        maps = [
            [(item.text(0), item.integer(1, "uint32")) for item in entry.tables(slot)]
            for slot in (0, 1)
        ]
        if entry.integer(4, "uint32") != 0 and self.strict:
            raise ValueError("a signature names a subgraph other than the first")
        for items, allowed in zip(maps, (graph.inputs, graph.outputs), strict=True):
            for name, index in items:
                if index not in allowed:
                    raise ValueError(
                        f"signature entry {name!r} names tensor {index}, not an input or output"
                    )
        if entry.text(2) == schema.SIGNATURE:
            names = [{index: name for name, index in items} for items in maps]
            graph.signature_inputs = tuple(names[0].get(i, "") for i in graph.inputs)
            graph.signature_outputs = tuple(names[1].get(i, "") for i in graph.outputs)


def _indices(table: Table, slot: int, count: int, what: str, least: int = 0) -> tuple[int, ...]:
    """Indices of tensors, each in ``least..count - 1``; -1 stands for an operand left out."""
    found = tuple(int(i) for i in table.array(slot, "<i4"))
    for index in found:
        if not least <= index < count:
            raise ValueError(f"damaged file: {what} names tensor {index} of {count}")
    return found


def _constant(
    name: str, content: np.ndarray, dtype: str, shape: Sequence[int]
) -> np.ndarray | None:
    """The values of a constant, in shape; None for types that are only named, never read."""
    if dtype not in DTYPES:
        return None
    count = 1
    for size in shape:
        if size < 0:
            raise ValueError(f"constant {name!r} has the open shape {tuple(shape)}")
        count *= size
    if dtype == "int4":
        if content.size != (count + 1) // 2:
            raise ValueError(f"constant {name!r}: {content.size} bytes for {count} values of int4")
        halves = np.stack([content << 4, content], axis=1).reshape(-1)[:count]
        return (halves.view(np.int8) >> 4).reshape(shape)
    if content.size != count * DTYPES[dtype].itemsize:
        raise ValueError(f"constant {name!r}: {content.size} bytes for {count} values of {dtype}")
    return _aligned(content, DTYPES[dtype]).reshape(shape)


def _aligned(content: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Bytes as numbers of ``dtype``, copied where the file has them at an odd address."""
    if content.ctypes.data % dtype.itemsize:
        content = content.copy()
    return content.view(dtype)


def subgraph_count(data: bytes, limits: Limits = DEFAULT) -> int:
    """Number of subgraphs in a file.

    Args:
        data: the file.
        limits: how many bytes it may unpack to.

    Raises:
        ValueError: if the file is damaged.
    """
    return File(data, limits).root(schema.FILE_IDENTIFIER).vector(2, 4)[1]
