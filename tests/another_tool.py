"""Files as another tool writes them: without our digest and description."""

from __future__ import annotations

from collections.abc import Mapping

import flatbuffers
from ai_edge_litert import schema_py_generated as schema


def by_another_tool(content: bytes, operators: Mapping[str, str] = {}) -> bytes:
    """Write a file again, without what says who made it.

    Args:
        content: The file.
        operators: New names of operators, by the old ones.
    """
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content))
    model.metadata, model.description = [], b"another tool"
    codes = {getattr(schema.BuiltinOperator, a): b for a, b in operators.items()}
    for code in model.operatorCodes:
        if code.builtinCode in codes:
            code.builtinCode = getattr(schema.BuiltinOperator, codes[code.builtinCode])
            code.deprecatedBuiltinCode = code.builtinCode
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
