"""What travels in the file beside the network: facts about the model, golden vectors, a digest.

Three named buffers in the file's metadata:

``tfdq.model``
    JSON (UTF-8): format version, labels, input normalisation, bits, how the export was verified,
        measured accuracy.
``tfdq.golden``
    Golden vectors for the self-test: zlib-compressed input integers, then output integers, of
    `golden_count` samples.
``tfdq.sha256``
    SHA-256 of the file with these 32 bytes set to zero.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tflite_export.ir.graph import DTYPES, IntegerGraph

FORMAT = 1
MODEL_NAME = "tfdq.model"
GOLDEN_NAME = "tfdq.golden"
DIGEST_NAME = "tfdq.sha256"
GOLDEN_SOURCE = "golden_source"
"""The fact that names the runtime that computed the golden vectors; absent where the trained
network did."""


@dataclass(frozen=True)
class GoldenVectors:
    """Inputs and the output integers the trained network gives for them.

    Attributes:
        inputs: one array per graph input, shape ``(count, ...)``, in the type of that input.
        outputs: one array per graph output, shape ``(count, ...)``, in the type of that output;
            where that is float32, the integers that the last operator dequantizes.
    """

    inputs: list[np.ndarray]
    outputs: list[np.ndarray]

    @property
    def count(self) -> int:
        """Number of samples."""
        return int(self.inputs[0].shape[0])


def digest_of(data: bytes | bytearray, start: int, size: int) -> bytes:
    """SHA-256 of ``data`` with the ``size`` bytes at ``start``, the digest's own, set to zero."""
    view = memoryview(data)
    digest = hashlib.sha256(view[:start])
    digest.update(bytes(size))
    digest.update(view[start + size :])
    return digest.digest()


def pack_facts(facts: Mapping[str, Any]) -> bytes:
    """The ``tfdq.model`` buffer.

    Raises:
        ValueError: if a value can't be written as JSON.
    """
    try:
        text = json.dumps({"format": FORMAT, **facts}, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"metadata must be JSON (text, numbers, lists, mappings; no NaN): {error}"
        ) from error
    return text.encode()


def facts_of(graph: IntegerGraph) -> dict[str, Any]:
    """The facts stored with a graph; empty if it carries none.

    Raises:
        ValueError: if the buffer is damaged.
    """
    content = graph.metadata.get(MODEL_NAME)
    if content is None:
        return {}
    try:
        facts = json.loads(content.decode())
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"metadata {MODEL_NAME!r} is not JSON: {error}") from error
    if not isinstance(facts, dict):
        raise ValueError(f"metadata {MODEL_NAME!r} is not a JSON object")
    return facts


def labels_of(graph: IntegerGraph) -> list[str]:
    """The names of the classes stored with a graph; empty if it carries none.

    Raises:
        ValueError: if they are not as many names as the first output has classes.
    """
    labels = facts_of(graph).get("labels") or []
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"metadata {MODEL_NAME!r}: the labels are not a list of names")
    shapes = [graph.tensors[index].shape for index in graph.outputs]
    if labels and (not shapes or shapes[0][-1:] != (len(labels),)):
        raise ValueError(f"metadata {MODEL_NAME!r}: {len(labels)} labels, outputs {shapes}")
    return labels


def pack_golden(golden: GoldenVectors) -> bytes:
    """The ``tfdq.golden`` buffer."""
    raw = b"".join(
        np.ascontiguousarray(array).tobytes() for array in golden.inputs + golden.outputs
    )
    return zlib.compress(raw, 9)


def golden_of(graph: IntegerGraph, most: int) -> GoldenVectors | None:
    """The golden vectors stored with a graph, or None.

    Args:
        graph: the graph.
        most: bytes that they may unpack to.

    Raises:
        ValueError: if the buffer is damaged, unpacks to more, or does not fit the graph.
    """
    content = graph.metadata.get(GOLDEN_NAME)
    if content is None:
        return None
    layout = [
        (graph.tensors[i].shape[1:], DTYPES[graph.tensors[i].dtype])
        for i in (*graph.inputs, *(graph.integer_output(i) for i in graph.outputs))
    ]
    sample = sum(math.prod(shape) * dtype.itemsize for shape, dtype in layout)
    unpack = zlib.decompressobj()
    try:
        raw = unpack.decompress(content, most)
    except zlib.error as error:
        raise ValueError(f"metadata {GOLDEN_NAME!r} is damaged: {error}") from error
    if len(raw) >= most and not unpack.eof:
        raise ValueError(
            f"metadata {GOLDEN_NAME!r} unpacks to more than {most:,} bytes. If you trust the file, "
            "raise the limit: limits=Limits(golden=...), or --cost-limit golden=... in a shell"
        )
    if not unpack.eof or sample <= 0 or not raw or len(raw) % sample:
        raise ValueError(
            f"metadata {GOLDEN_NAME!r}: {len(raw)} bytes are no whole number of samples of "
            f"{sample} bytes"
        )
    count, start = len(raw) // sample, 0
    arrays = []
    for shape, dtype in layout:
        items = count * math.prod(shape)
        arrays.append(np.frombuffer(raw, dtype, items, start).reshape((count, *shape)))
        start += items * dtype.itemsize
    return GoldenVectors(arrays[: len(graph.inputs)], arrays[len(graph.inputs) :])
