"""The wire format: tables that share what they point to, and tables of absurd size."""

import struct

import pytest

from tests.tflite_export.hostile import count_calls
from tflite_export.files.read import read
from tflite_export.files.wire import File
from tflite_export.ir.limits import Limits
from tflite_export.runtime.memory import added_peak


def _file(fields):
    """A file whose root has a vector in each slot, given as (count, bytes of the vector)."""
    vtable = struct.pack(
        f"<HH{len(fields)}H",
        4 + 2 * len(fields),
        4 + 4 * len(fields),
        *(4 + 4 * i for i in range(len(fields))),
    )
    vtable += bytes(-len(vtable) % 4)
    root = 8 + len(vtable)
    data = bytearray(struct.pack("<I", root) + b"TFL3" + vtable)
    data += struct.pack("<i", len(vtable)) + bytes(4 * len(fields))
    for slot, (count, content) in enumerate(fields):
        place = root + 4 + 4 * slot
        data[place : place + 4] = struct.pack("<I", len(data) - place)
        data += struct.pack("<I", count) + content
        data += bytes(-len(data) % 4)
    return bytes(data)


def _many_tables(count):
    """A vector of ``count`` offsets that all point to one table."""
    content = bytearray(b"".join(struct.pack("<I", 4 * (count - i)) for i in range(count)))
    content += struct.pack("<i", -4) + struct.pack("<HH", 4, 4)
    return count, bytes(content)


def test_many_references_to_one_table_are_refused():
    data = _file([(0, b"")] * 4 + [_many_tables(300_000)])

    def refuse(limits):
        with pytest.raises(ValueError, match="unpacked"):
            read(data, strict=False, limits=limits)

    assert added_peak(lambda: refuse(Limits())) < 300
    # No more than the tables that the limit allows, of 256 bytes each, are looked at.
    assert count_calls(lambda: refuse(Limits(unpacked=256 * 1000))) < 30 * 1000


def test_tables_are_read_where_they_are_few():
    data = _file([(0, b"")] * 4 + [_many_tables(100)])
    root = File(data).root(b"TFL3")
    assert len(root.tables(4)) == 100


def test_what_is_read_is_counted_each_time():
    data = _file([(8, b"abcdefgh\0")])
    root = File(data, Limits(unpacked=256 + 16)).root(b"TFL3")
    assert root.text(0) == root.text(0) == "abcdefgh"
    with pytest.raises(ValueError, match="it takes 280 bytes once unpacked"):
        root.text(0)


def test_a_table_of_more_fields_than_the_schema_has_is_refused():
    with pytest.raises(ValueError, match="impossible size"):
        File(_file([(0, b"")] * 65)).root(b"TFL3")
