"""Write an `IntegerGraph` as a ``.tflite`` file, with LiteRT's own schema and no converter."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tflite_export.files.metadata import DIGEST_NAME, digest_of
from tflite_export.files.read import metadata_position
from tflite_export.ir import schema
from tflite_export.ir.graph import BATCH, IntegerGraph, Operator, Tensor
from tflite_export.ir.limits import UNLIMITED
from tflite_export.ops import OPERATORS

_NO_DIGEST = {DIGEST_NAME: bytes(hashlib.sha256().digest_size)}
"""The digest's place in a file that has none yet."""


@dataclass
class _Pools:
    """What the tables of the file point into: buffers, operator codes."""

    fb: Any
    buffers: list[Any] = field(default_factory=list)
    constants: dict[tuple[str, bytes], int] = field(default_factory=dict)
    codes: list[Any] = field(default_factory=list)
    code_index: dict[tuple[str, int], int] = field(default_factory=dict)

    def buffer(self, data: np.ndarray | None) -> int:
        """The index of a new buffer with ``data`` (uint8), or of a new empty one."""
        entry = _aligned_buffer(self.fb)
        entry.data = data
        self.buffers.append(entry)
        return len(self.buffers) - 1

    def constant(self, data: np.ndarray) -> int:
        """The index of the buffer with ``data``; equal constants share one."""
        key = (str(data.size), hashlib.sha256(data.data).digest())
        if key not in self.constants:
            self.constants[key] = self.buffer(data)
        return self.constants[key]

    def metadata(self, name: str, content: bytes) -> Any:
        """A metadata entry with a new buffer of its own."""
        entry = self.fb.MetadataT()
        entry.name = name
        entry.buffer = self.buffer(np.frombuffer(content, np.uint8))
        return entry

    def code(self, kind: str, version: int) -> int:
        """The index of the operator code for ``kind``."""
        key = (kind, version)
        if key not in self.code_index:
            entry = self.fb.OperatorCodeT()
            entry.builtinCode = schema.OPERATOR_NAMES.index(kind)
            entry.deprecatedBuiltinCode = min(entry.builtinCode, 127)
            entry.version = version
            self.code_index[key] = len(self.codes)
            self.codes.append(entry)
        return self.code_index[key]


def write(graph: IntegerGraph) -> bytes:
    """The ``.tflite`` file of a graph.

    The file carries a SHA-256 digest of itself, which `tflite_export.files.validate` compares on
    loading, so that a damaged file is recognised whatever bit it is damaged in.

    Args:
        graph: a graph of the operators in `ops.OPERATORS`.

    Returns:
        The bytes of the file.

    Raises:
        ValueError: for an operator that has no writer.
        ImportError: LiteRT is not installed.
    """
    fb = _litert_schema()
    pools = _Pools(fb)
    pools.buffer(None)
    model = fb.ModelT()
    model.version = schema.SCHEMA_VERSION
    model.description = schema.PRODUCER
    subgraph = fb.SubGraphT()
    subgraph.name = graph.name
    subgraph.inputs = np.array(graph.inputs, np.int32)
    subgraph.outputs = np.array(graph.outputs, np.int32)
    subgraph.tensors = [_tensor(pools, tensor) for tensor in graph.tensors]
    subgraph.operators = [_operator(pools, graph, operator) for operator in graph.operators]
    model.subgraphs = [subgraph]
    model.signatureDefs = [_signature(fb, graph)]
    model.metadata = [
        pools.metadata(name, content) for name, content in {**graph.metadata, **_NO_DIGEST}.items()
    ]
    model.operatorCodes = pools.codes
    model.buffers = pools.buffers
    return _sealed(_packed(model, graph.constant_bytes()))


def with_metadata(content: bytes, entries: Mapping[str, bytes]) -> bytes:
    """A copy of a ``.tflite`` file of any maker with further metadata and a digest of itself.

    Args:
        content: the file, which was read before and is sound.
        entries: named byte strings; one that the file has by that name is replaced.

    Returns:
        The bytes of the copy. Its operators, tensors and other metadata are those of the file.

    Raises:
        ImportError: LiteRT is not installed.
    """
    fb = _litert_schema()
    model = fb.ModelT.InitFromPackedBuf(bytearray(content), 0)
    added = {**entries, **_NO_DIGEST}
    names = {name.encode() for name in added}
    model.metadata = [entry for entry in model.metadata or [] if entry.name not in names]
    pools = _Pools(fb)
    for held in model.buffers:
        pools.buffer(held.data)
    model.metadata += [pools.metadata(name, data) for name, data in added.items()]
    model.buffers = pools.buffers
    return _sealed(_packed(model, len(content)))


def _litert_schema() -> Any:
    try:
        import ai_edge_litert.schema_py_generated as fb
    except ImportError as error:
        raise ImportError(
            "writing a .tflite file needs LiteRT's schema: pip install ai-edge-litert"
        ) from error
    return fb


def _aligned_buffer(fb: Any) -> Any:
    """A buffer whose bytes start at a multiple of 16, as the schema demands (``force_align``).

    LiteRT's generated Python packs them at any address, which faults on processors that can't read
    an int32 from there, and which TensorFlow Lite Micro, reading in place, does not allow.
    """

    class AlignedBuffer(fb.BufferT):
        def Pack(self, builder: Any) -> int:
            vector = None
            if self.data is not None and self.data.size:
                builder.StartVector(1, self.data.size, _ALIGNMENT)
                builder.head -= self.data.size
                builder.Bytes[builder.head : builder.head + self.data.size] = self.data.tobytes()
                vector = builder.EndVector()
            fb.BufferStart(builder)
            if vector is not None:
                fb.BufferAddData(builder, vector)
            return fb.BufferEnd(builder)

    return AlignedBuffer()


_ALIGNMENT = 16


def _packed(model: Any, size_hint: int) -> bytearray:
    import flatbuffers

    builder = flatbuffers.Builder(size_hint + 65536)
    builder.Finish(model.Pack(builder), schema.FILE_IDENTIFIER)
    return bytearray(builder.Output())


def _sealed(data: bytearray) -> bytes:
    start, size = metadata_position(data, DIGEST_NAME, UNLIMITED)
    data[start : start + size] = digest_of(data, start, size)
    return bytes(data)


def _tensor(pools: _Pools, tensor: Tensor) -> Any:
    entry = pools.fb.TensorT()
    entry.name = tensor.name
    entry.shape = np.array([1 if size == BATCH else size for size in tensor.shape], np.int32)
    if BATCH in tensor.shape:
        entry.shapeSignature = np.array(tensor.shape, np.int32)
    entry.type = schema.TENSOR_TYPES.index(tensor.dtype)
    entry.hasRank = True
    entry.buffer = 0 if tensor.data is None else pools.constant(_stored(tensor))
    if tensor.quantization is not None:
        grid = pools.fb.QuantizationParametersT()
        grid.scale = tensor.quantization.scale.astype(np.float32)
        grid.zeroPoint = tensor.quantization.zero_point.astype(np.int64)
        grid.quantizedDimension = tensor.quantization.axis
        entry.quantization = grid
    return entry


def _stored(tensor: Tensor) -> np.ndarray:
    """The bytes of a constant, ``(n,)`` uint8; int4 two to a byte, low half first."""
    if tensor.data is None:
        raise ValueError(f"tensor {tensor.name!r} is not a constant")
    values = np.ascontiguousarray(tensor.data).reshape(-1)
    if tensor.dtype != "int4":
        return values.view(np.uint8)
    nibbles = np.append(values, np.zeros(values.size % 2, np.int8)).view(np.uint8) & 0x0F
    return nibbles[0::2] | (nibbles[1::2] << 4)


def _operator(pools: _Pools, graph: IntegerGraph, operator: Operator) -> Any:
    spec = OPERATORS.get(operator.kind)
    if spec is None or not isinstance(operator.options, spec.schema.options):
        raise ValueError(
            f"no writer for operator {operator.kind!r} with options {operator.options!r}; "
            f"known operators: {', '.join(OPERATORS)}"
        )
    layout = spec.schema
    entry = pools.fb.OperatorT()
    has_int4 = any(operand and operand.dtype == "int4" for operand in graph.operands(operator))
    version = layout.int4_version if has_int4 else layout.version
    entry.opcodeIndex = pools.code(operator.kind, version)
    entry.inputs = np.array(operator.inputs, np.int32)
    entry.outputs = np.array(operator.outputs, np.int32)
    entry.builtinOptionsType = layout.union
    if layout.union:
        entry.builtinOptions = getattr(pools.fb, f"{layout.table}T")()
    for option in layout.fields:
        value = getattr(operator.options, option.name)
        stored = option.choices.index(value) if option.choices else value
        stored = np.array(value, np.int32) if option.kind == "list" else stored
        setattr(entry.builtinOptions, _LITERT_NAMES.get(option.name, _camel(option.name)), stored)
    return entry


_LITERT_NAMES = {
    "activation": "fusedActivationFunction",
    "dilation_w": "dilationWFactor",
    "dilation_h": "dilationHFactor",
    "filter_w": "filterWidth",
    "filter_h": "filterHeight",
}


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def _signature(fb: Any, graph: IntegerGraph) -> Any:
    def entries(names: tuple[str, ...], indices: tuple[int, ...], fallback: str) -> list[Any]:
        maps = []
        for position, index in enumerate(indices):
            entry = fb.TensorMapT()
            entry.name = names[position] if position < len(names) else f"{fallback}_{position}"
            entry.tensorIndex = index
            maps.append(entry)
        return maps

    signature = fb.SignatureDefT()
    signature.signatureKey = schema.SIGNATURE
    signature.subgraphIndex = 0
    signature.inputs = entries(graph.signature_inputs, graph.inputs, "input")
    signature.outputs = entries(graph.signature_outputs, graph.outputs, "output")
    return signature
