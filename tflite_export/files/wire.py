"""The flatbuffer wire format, read with every bound checked, in plain Python.

The flatbuffers package for Python trusts its input: a damaged offset reads garbage or raises
whatever comes. Here each access is checked against the file, so that damage is a `ValueError` that
says where. This module also makes the reader independent of any package but NumPy, as a board with
tflite-runtime alone needs.

Format: https://flatbuffers.dev/internals/.
"""

from __future__ import annotations

import struct
from collections.abc import Collection

import numpy as np

from tflite_export.ir.limits import DEFAULT, Limits, Meter

_SCALARS = {
    "int8": struct.Struct("<b"),
    "uint8": struct.Struct("<B"),
    "bool": struct.Struct("<B"),
    "uint16": struct.Struct("<H"),
    "int32": struct.Struct("<i"),
    "uint32": struct.Struct("<I"),
    "uint64": struct.Struct("<Q"),
    "float32": struct.Struct("<f"),
}


_TABLE_BYTES = 256
"""Bytes that an open table takes."""

_LARGEST_VTABLE = 4 + 2 * 64
"""Bytes of a table of 64 fields; no table of the schema has as many."""


class File:
    """The bytes of a flatbuffer, and checked reads of single values.

    Tables may share what they point to, so that a small file can unpack to a huge one: everything
    that is read is metered.

    Args:
        data: the whole file.
        limits: how much it may unpack to.
    """

    def __init__(self, data: bytes | bytearray, limits: Limits = DEFAULT) -> None:
        """Keep a view of ``data``; nothing is read yet."""
        self.data = memoryview(data)
        self.meter = Meter(limits, len(data))

    def scalar(self, position: int, kind: str) -> int | float:
        """The little-endian value of type ``kind`` at ``position``.

        Raises:
            ValueError: if it is not wholly inside the file, or not aligned to its size.
        """
        layout = _SCALARS[kind]
        self.require(position, layout.size, kind)
        if position % layout.size:
            raise ValueError(f"damaged file: {kind} at byte {position} is not aligned")
        return layout.unpack_from(self.data, position)[0]

    def offset(self, position: int) -> int:
        """Where the unsigned offset stored at ``position`` points to."""
        return position + int(self.scalar(position, "uint32"))

    def require(self, position: int, size: int, what: str) -> None:
        """Check that ``size`` bytes at ``position`` are inside the file.

        Raises:
            ValueError: if they are not.
        """
        if position < 0 or size < 0 or position + size > len(self.data):
            raise ValueError(
                f"damaged file: {what} at byte {position} ({size} bytes) is outside the "
                f"{len(self.data)} bytes"
            )

    def root(self, identifier: bytes) -> Table:
        """The outermost table.

        Args:
            identifier: the four bytes that name the format, at byte 4 of the file.

        Raises:
            ValueError: if the file does not carry them.
        """
        self.require(0, 8, "header")
        found = bytes(self.data[4:8])
        if found != identifier:
            raise ValueError(
                f"not a TensorFlow Lite file: bytes 4..7 are {found!r}, expected {identifier!r}"
            )
        return Table(self, self.offset(0))


class Table:
    """A table of a flatbuffer: fields found by slot through a vtable.

    Args:
        file: the file that it is in.
        position: where it starts.
    """

    def __init__(self, file: File, position: int) -> None:
        """Read and check the vtable.

        Raises:
            ValueError: if table or vtable reach outside the file.
        """
        self.file = file
        self.position = position
        file.meter.spend(_TABLE_BYTES)
        vtable = position - int(file.scalar(position, "int32"))
        size = int(file.scalar(vtable, "uint16"))
        self.size = int(file.scalar(vtable + 2, "uint16"))
        if not 4 <= size <= _LARGEST_VTABLE or size % 2 or self.size < 4:
            raise ValueError(f"damaged file: the vtable at byte {vtable} has an impossible size")
        file.require(vtable, size, "vtable")
        file.require(position, self.size, "table")
        self.slots = struct.unpack_from(f"<{(size - 4) // 2}H", file.data, vtable + 4)

    def present(self) -> set[int]:
        """The slots of the fields that the file stores for this table."""
        return {slot for slot, offset in enumerate(self.slots) if offset}

    def require_only(self, known: Collection[int], what: str) -> None:
        """Refuse fields this package does not know, since the runtime may act on them.

        Raises:
            ValueError: if another slot than ``known`` is stored.
        """
        unknown = self.present() - set(known)
        if unknown:
            raise ValueError(
                f"{what} stores unsupported schema fields (slots {sorted(unknown)}): "
                "a damaged file, or a feature that this package does not read"
            )

    def scalar(self, slot: int, kind: str, default: float = 0) -> int | float:
        """The value in ``slot``, or ``default`` where the file leaves it out."""
        position = self._field(slot, _SCALARS[kind].size)
        return default if position is None else self.file.scalar(position, kind)

    def integer(self, slot: int, kind: str, default: int = 0) -> int:
        """The integer in ``slot``, or ``default`` where the file leaves it out."""
        return int(self.scalar(slot, kind, default))

    def table(self, slot: int) -> Table | None:
        """The table that ``slot`` points to, or None."""
        position = self._field(slot, 4)
        return None if position is None else Table(self.file, self.file.offset(position))

    def array(self, slot: int, dtype: str) -> np.ndarray:
        """The numbers in the vector in ``slot``, a read-only view, ``(n,)``; empty if left out."""
        item = np.dtype(dtype)
        start, count = self.vector(slot, item.itemsize)
        if start % item.itemsize:
            raise ValueError(f"damaged file: vector of {dtype} at byte {start} is not aligned")
        return np.frombuffer(self.file.data, item, count, start)

    def tables(self, slot: int) -> list[Table]:
        """The tables that the vector in ``slot`` points to; empty where left out."""
        start, count = self.vector(slot, 4)
        return [Table(self.file, self.file.offset(start + 4 * i)) for i in range(count)]

    def text(self, slot: int) -> str:
        """The string in ``slot``; empty where left out.

        Raises:
            ValueError: if it is not UTF-8 or not terminated by a zero byte.
        """
        start, count = self.vector(slot, 1)
        if not count:
            return ""
        self.file.require(start, count + 1, "string")
        if self.file.data[start + count] != 0:
            raise ValueError(f"damaged file: the string at byte {start} is not terminated")
        try:
            return bytes(self.file.data[start : start + count]).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"damaged file: the string at byte {start} is not UTF-8") from error

    def vector(self, slot: int, item_size: int) -> tuple[int, int]:
        """Where the vector in ``slot`` starts, and its length; ``(0, 0)`` where left out."""
        position = self._field(slot, 4)
        if position is None:
            return 0, 0
        start = self.file.offset(position)
        count = int(self.file.scalar(start, "uint32"))
        self.file.require(start + 4, count * item_size, "vector")
        self.file.meter.spend(count * item_size)
        return start + 4, count

    def _field(self, slot: int, size: int) -> int | None:
        if slot >= len(self.slots) or not self.slots[slot]:
            return None
        offset = self.slots[slot]
        if offset < 4 or offset + size > self.size:
            raise ValueError(
                f"damaged file: slot {slot} lies outside the table at byte {self.position}"
            )
        return self.position + offset
