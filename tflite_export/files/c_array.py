"""A file as an array in C++, for microcontrollers that have no file system."""

from __future__ import annotations

import re

_BYTES_IN_A_LINE = 16


def c_array(content: bytes, name: str = "model_tflite") -> str:
    """C++ source that holds a file.

    Constants of the network are read in place, so that the array lies at a multiple of 16 bytes.

    Args:
        content: the file.
        name: of the array; its length is ``NAME_len``, as `xxd -i` names it.

    Returns:
        The source, to be saved as ``.cc``.

    Raises:
        ValueError: the name is none that C++ takes.
    """
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError(f"{name!r} names no array in C++: letters, digits and _, no digit first")
    starts = range(0, len(content), _BYTES_IN_A_LINE)
    lines = [", ".join(f"0x{b:02x}" for b in content[s : s + _BYTES_IN_A_LINE]) for s in starts]
    body = ",\n  ".join(lines)
    return (
        f"extern const unsigned char {name}[];\n"
        f"extern const unsigned int {name}_len;\n"
        f"alignas(16) const unsigned char {name}[] = {{\n  {body}\n}};\n"
        f"const unsigned int {name}_len = {len(content)};\n"
    )
